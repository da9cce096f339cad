// Rollouts: whole episodes of many controllers in the dream.
#pragma once

#include "core/lanes.hpp"
#include "core/parallel.hpp"

namespace worldmodels {

// The recording of one episode.
struct Record {
    float* z;           // (max_steps + 1, latent)
    float* action;      // (max_steps, action)
    float* done_logit;  // (max_steps), or null without a termination head
    float* reward;      // (max_steps)
};

struct RolloutArgs {
    const float* params;  // (candidates, controller size)
    std::uint32_t candidates, episodes;
    std::uint32_t first_candidate, first_episode;
    std::uint64_t seed;
    bool common_random_numbers;  // every candidate uses the random streams of candidate 0
    float temperature;
    int max_steps;
    int threads;
    Record* record;          // null unless there is one candidate with one episode
    float* returns;          // (candidates, episodes)
    std::int32_t* lengths;   // (candidates, episodes)
    std::int64_t* computed;  // (1), or null: incremented by the steps computed, idle lanes included
};

// Plays candidates x episodes. Returns false when the poll asked to stop. Throws std::bad_alloc, and
// std::runtime_error as check_not_forked.
bool rollout_unchecked(const Kernels& kernels, const WorldModel& model, const ControllerView& controller,
                       const RolloutArgs& args, Poll poll);

}  // namespace worldmodels
