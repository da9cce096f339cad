// The search for OpenBLAS opens no library inside the iteration over the loaded ones, where dlopen and an
// import in another thread wait for each other's lock. Both calls are replaced here.
#include <dlfcn.h>
#include <link.h>

#include "check.hpp"
#include "core/lapack_threads.hpp"

namespace {

constexpr const char* kName = "/nowhere/libopenblas.so";
bool iterating = false;
int opened = 0, opened_while_iterating = 0;

}  // namespace

extern "C" {

int dl_iterate_phdr(int (*callback)(dl_phdr_info*, std::size_t, void*), void* data) {
    dl_phdr_info info{};
    info.dlpi_name = kName;
    iterating = true;
    const int result = callback(&info, sizeof info, data);
    iterating = false;
    return result;
}

void* dlopen(const char* path, int) noexcept {
    if (path == nullptr || std::strcmp(path, kName) != 0) return nullptr;
    ++opened;
    opened_while_iterating += iterating ? 1 : 0;
    return nullptr;
}
}

int main() {
    using namespace worldmodels;
    const SingleLapackThread one_thread;
    test::check(opened == 1, "the library is opened", "all", opened);
    test::check(opened_while_iterating == 0, "it is opened after the iteration", "all", opened);
    return test::finish("lapack_threads");
}
