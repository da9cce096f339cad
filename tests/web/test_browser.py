"""The page in Chromium: loading, keys, temperature, exactness, refusals, an image of one's own, evolution, touch."""

import os
import re
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from bundles import small_agent, small_bundle, small_world

import worldmodels as wm
from worldmodels import Agent, Dream
from worldmodels.pipeline.dream_page import make_page
from worldmodels.pipeline.run import Run
from worldmodels.support.simd import simd_level
from worldmodels.web.page import WASM, WEIGHTS, Page, wasm_is_built, write_page
from worldmodels.web.server import PageServer

CHROMIUM = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
FLAGS = ["--no-sandbox", "--disable-background-networking"]
SECTIONS = ["play", "exploited", "vision", "memory", "agent", "evolve"]


def missing():
    """What keeps these tests from running; CI sets WORLDMODELS_BROWSER and fails instead of skipping."""
    if CHROMIUM is None:
        return "needs Chromium (apt-get install chromium)"
    if not wasm_is_built():
        return "needs dream.wasm (pip install ziglang, and worldmodels again)"
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "needs playwright (pip install playwright)"
    return None


pytestmark = pytest.mark.skipif(
    missing() is not None and "WORLDMODELS_BROWSER" not in os.environ, reason=missing() or "available"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page():
    return make_page(*Run.find("takecover"))


@pytest.fixture(scope="module")
def one_file(page, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "dream.html"
    write_page(page, file, split=False)
    return file


def served(page):
    server = PageServer(page.folder(), page.policy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def server(page):
    with served(page) as serving:
        yield serving
        serving.shutdown()


class Tab:
    """A tab that keeps what must not happen: errors, and requests to elsewhere."""

    def __init__(self, browser, url, ready=True, script="", **context):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.context.set_default_timeout(120_000)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", lambda line: self.errors.append(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        if script:
            self.page.add_init_script(script)
        self.url = url
        self.page.goto(url)
        if ready:
            self.page.wait_for_selector("html[data-ready]", state="attached")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.close()

    def js(self, script, argument=None):
        return self.page.evaluate(script, argument)

    def wait(self, condition):
        """Playwright's own wait is an eval, which the policy of the page forbids."""
        for _ in range(1200):
            if self.js(condition):
                return
            self.page.wait_for_timeout(100)
        pytest.fail(f"expected {condition}")

    def check(self):
        own = (self.url.partition("#")[0], "data:", "blob:")
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(own)] == []


@pytest.fixture(scope="module")
def tab(browser, server):
    with Tab(browser, server.url) as opened:
        yield opened
        opened.check()


def test_one_file_works_from_disk_and_offline(browser, one_file):
    assert one_file.stat().st_size < 8.5e6
    with Tab(browser, one_file.as_uri(), offline=True) as tab:
        assert tab.js("[...document.querySelectorAll('main section')].map(one => one.id)") == SECTIONS
        assert tab.js("[...document.querySelectorAll('nav a')].length") == 6
        assert tab.page.is_hidden("#error") and tab.page.is_hidden("#loading")
        # Every screen of the visible demonstration shows a frame.
        shown = "new Set(document.getElementById('play-canvas').getContext('2d').getImageData(0, 0, 64, 64).data).size"
        assert tab.js(shown) > 20
        marks = tab.js("performance.getEntriesByName('first frame').map(one => one.startTime)")
        print(f"\nfirst frame after {marks[0]:.0f} ms from disk")
        evolve(tab)
        tab.check()


def test_served_page_has_no_errors_and_asks_nobody(tab, server):
    tab.check()
    assert {url.removeprefix(server.url) for url in tab.requests if url.startswith("http")} >= {"app.js", "dream.wasm"}


def z(tab):
    return np.array(tab.js("Array.from(worldmodels.shown.play.dream.z)"), np.float32)


def steps(tab, number, key=None, player="human"):
    """Restart the dream of seed 4, and step it with a key held."""
    tab.page.check(f"#play-player input[value={player}]", force=True)
    tab.page.fill("#play-seed", "4")
    tab.page.press("#play-seed", "Enter")
    tab.page.focus("#play-screen")
    tab.page.keyboard.press(".")  # pauses
    tab.page.fill("#play-seed", "4")
    tab.page.dispatch_event("#play-seed", "change")
    tab.page.focus("#play-screen")
    if key:
        tab.page.keyboard.down(key)
    for _ in range(number):
        tab.page.keyboard.press(".")
    if key:
        tab.page.keyboard.up(key)
    assert tab.page.inner_text("#play-steps") == str(number)
    return z(tab)


@pytest.mark.parametrize(("key", "action"), [("ArrowLeft", -1), ("ArrowRight", 1), (None, 0)])
def test_keys_are_the_players_action(tab, key, action):
    found = steps(tab, 12, key)
    expected = tab.js(
        """([action, temperature]) => {
            const dream = worldmodels.world.dream({ seed: 4, temperature });
            for (let step = 0; step < 12; step++) dream.step([action]);
            return Array.from(dream.z);
        }""",
        [action, 1.15],
    )
    assert np.array_equal(found, np.array(expected, np.float32))
    assert np.array_equal(steps(tab, 12, key), found)


@contextmanager
def toy(browser, page, world, agents, **changed):
    """A tab with the page of a small M."""
    weights = small_bundle(world, agents=agents, max_steps=500)
    about = {**page.about, "films": {}, "exploited": None, **changed}
    with served(Page("toy", about, {WASM: page.data[WASM], WEIGHTS: weights})) as server:
        with Tab(browser, server.url) as opened:
            yield opened
            opened.check()
        server.shutdown()


NAMES = ["noop", "go left", "go right", "Up", "fire", *(f"throw {number}" for number in range(9)), "stand", "jump"]


@pytest.fixture(scope="module")
def discrete(browser, page):
    """A page of an M with two discrete actions, of 14 values and of two."""
    world = small_world(16, action_size=16, done_head=False, reward_head=True)
    agents = {"agent": small_agent(world, squash="argmax", choices=(14, 2))}
    keys = {"left": (0, 1), "right": (0, 0, 1), "up": (0, 0, 0, 1)}
    with toy(browser, page, world, agents, actions=NAMES, squash="argmax", keys=keys) as opened:
        yield opened


@pytest.mark.parametrize(
    ("key", "chosen"),
    [(None, 0), ("ArrowLeft", 1), ("ArrowRight", 2), ("ArrowUp", 3), ("1", 4), ("0", 13), ("q", 15), ("Q", 15)],
)
def test_keys_of_discrete_actions(discrete, key, chosen):
    action = [1, *[0] * 13, 1, 0]
    first = 14 if chosen >= 14 else 0
    action[first], action[chosen] = 0, 1
    found = steps(discrete, 3, key)
    expected = discrete.js(
        """([action, temperature]) => {
            const dream = worldmodels.world.dream({ seed: 4, temperature });
            for (let step = 0; step < 3; step++) dream.step(action);
            return Array.from(dream.z);
        }""",
        [action, 1.0],
    )
    assert np.array_equal(found, np.array(expected, np.float32))


def test_buttons_of_discrete_actions_name_their_keys(discrete):
    labels = discrete.js("[...document.querySelectorAll('#play-pad button')].map(one => one.title)")
    assert labels[:5] == ["go left", "go right", "Up", "fire (key 1)", "throw 0 (key 2)"]
    assert labels[-1] == "jump (key q)"
    shown = discrete.page.locator("#play-pad button").all_inner_texts()
    assert [shown[at] for at in (0, 1, 2, 3, -1)] == ["◀", "▶", "▲", "fire\xa01", "jump\xa0Q"]
    keys = discrete.page.locator("#play-pad kbd").all_inner_texts()
    assert keys == [*"1234567890Q"]


@pytest.mark.parametrize("key", ["KeyQ", "Digit1"])
def test_shift_holds_no_key(discrete, key):
    """A key that is released with Shift has another name."""
    steps(discrete, 0)
    discrete.page.keyboard.down(key)
    assert pressed(discrete) == 1
    discrete.page.keyboard.down("Shift")
    discrete.page.keyboard.up(key)
    discrete.page.keyboard.up("Shift")
    assert pressed(discrete) == 0


@pytest.fixture(scope="module")
def driver(browser, page):
    """A page of an M with CarRacing's actions, without C; its wheel turns the other way."""
    world = small_world(16, action_size=3, done_head=False, reward_head=True)
    keys = {"left": (1.0,), "right": (-1.0,), "up": (0.0, 1.0), "down": (0.0, 0.0, 0.8)}
    actions = ["steering", "gas", "brake"]
    with toy(browser, page, world, {}, actions=actions, squash="carracing", keys=keys) as opened:
        yield opened


def test_without_an_agent_the_reader_plays(driver):
    assert driver.page.inner_text("#play-message") == "Press an arrow key to play."
    assert driver.page.locator("#play .with-agent").count() == 3
    assert driver.page.locator("#play .with-agent:visible").count() == 0
    driver.page.keyboard.press("m")
    assert driver.js("worldmodels.shown.play.state.player") == "human"
    assert driver.js("worldmodels.shown.play.state.waiting")
    assert driver.page.inner_text("#play-who") == "You play"


def test_keys_have_the_actions_of_the_task(driver):
    """They act wherever the focus is, and the page stays in place."""
    driver.js(
        """() => {
            const { dream, runner } = worldmodels.shown.play, step = dream.step.bind(dream);
            dream.step = (action) => ((globalThis.taken = [...action]), step(action));
            runner.stop();
        }"""
    )
    driver.page.keyboard.press("ArrowLeft")
    driver.page.keyboard.press(".")  # pauses
    driver.page.wait_for_timeout(1000)  # until the view has scrolled
    driver.js("document.activeElement.blur()")
    place = driver.js("[scrollY, document.documentElement.scrollHeight - innerHeight]")
    assert place[0] < place[1]

    def taken(*keys):
        driver.page.keyboard.press("r")
        driver.page.keyboard.press("p")
        for key in keys:
            driver.page.keyboard.down(key)
        driver.page.keyboard.press(".")
        for key in keys:
            driver.page.keyboard.up(key)
        return driver.js("taken")

    assert taken() == [0, 0, 0]
    assert taken("ArrowLeft") == pytest.approx([0.15, 0, 0])
    assert taken("ArrowRight", "ArrowUp") == pytest.approx([-0.15, 1, 0])
    assert taken("ArrowDown") == pytest.approx([0, 0, 0.8])
    driver.page.wait_for_timeout(300)
    assert driver.js("scrollY") == place[0]
    labels = driver.js("[...document.querySelectorAll('#play-pad button')].map(one => one.title)")
    assert labels == ["steering left", "steering right", "gas", "brake"]


def test_keys_move_the_player(tab):
    left, right = steps(tab, 12, "ArrowLeft"), steps(tab, 12, "ArrowRight")
    assert np.abs(left - right).max() > 0.5


def test_both_is_the_agent_until_a_key_is_pressed(tab):
    assert np.array_equal(steps(tab, 12, player="both"), steps(tab, 12, player="agent"))
    assert np.array_equal(steps(tab, 12, "ArrowLeft", "both"), steps(tab, 12, "ArrowLeft", "human"))
    assert np.abs(steps(tab, 12, "ArrowLeft", "both") - steps(tab, 12, player="both")).max() > 0


def pressed(tab):
    return tab.js("document.querySelectorAll('#play-pad .on').length")


def test_buttons_move_the_player(tab):
    steps(tab, 0)
    tab.page.hover("#play-pad button >> nth=1")
    tab.page.mouse.down()
    assert pressed(tab) == 1
    tab.page.keyboard.press(".")
    tab.page.mouse.up()
    assert pressed(tab) == 0


@pytest.mark.parametrize("key", ["Space", "Enter"])
def test_buttons_move_the_player_from_the_keyboard(tab, key):
    expected = steps(tab, 3, "ArrowRight")
    steps(tab, 0)
    tab.page.focus("#play-pad button >> nth=1")
    tab.page.keyboard.down(key)
    assert pressed(tab) == 1
    for _ in range(3):
        tab.page.keyboard.press(".")
    tab.page.keyboard.up(key)
    assert pressed(tab) == 0
    assert np.array_equal(z(tab), expected)
    tab.page.keyboard.down(key)
    tab.page.focus("#play-screen")
    tab.page.keyboard.up(key)
    assert pressed(tab) == 0


def test_keys_work_after_every_button(tab):
    focus = "document.activeElement.id"
    for name in ("restart", "next", "step", "pause", "link"):
        tab.page.click(f"#play-{name}")
        tab.page.keyboard.down("ArrowLeft")
        assert (pressed(tab), tab.js(focus)) == (1, "play-screen"), name
        tab.page.keyboard.up("ArrowLeft")
    for player in ("human", "human", "agent", "both"):
        tab.page.click(f"#play-player label:has([value={player}])")
        for _ in range(2):
            tab.page.keyboard.press("ArrowRight")
        assert (tab.js("worldmodels.shown.play.state.player"), tab.js(focus)) == (player, "play-screen")
    # At once: a key pressed right after the click plays too.
    label = "document.querySelector('#play-player label:has([value=agent])')"
    click = "new MouseEvent('click', { bubbles: true, cancelable: true, detail: 1 })"
    player, focused = tab.js(
        f"({label}.dispatchEvent({click}), [worldmodels.shown.play.state.player, document.activeElement.id])"
    )
    assert (player, focused) == ("agent", "play-screen")
    # Who uses the keyboard stays where they are.
    tab.page.focus("#play-restart")
    tab.page.keyboard.press("Enter")
    assert tab.js(focus) == "play-restart"
    tab.page.focus("#play-player input[value=both]")
    tab.page.keyboard.press("ArrowLeft")
    assert tab.js("[worldmodels.shown.play.state.player, document.activeElement.value]") == ["agent", "agent"]


def test_a_link_in_an_open_tab_starts_its_dream(tab):
    steps(tab, 3)
    tab.js("() => { location.hash = '#seed=77&temperature=0.5'; }")
    tab.wait("worldmodels.shown.play.dream.seed === 77")
    tab.wait("worldmodels.shown.play.dream.steps > 3")
    assert tab.js("worldmodels.shown.play.dream.temperature") == 0.5
    assert tab.page.input_value("#play-temperature") == "0.5"
    assert tab.page.inner_text("#play-pause") == "Pause"
    tab.js("() => { location.hash = '#evolve'; }")
    tab.page.wait_for_timeout(300)
    assert tab.js("worldmodels.shown.play.state.seed") == 77
    tab.page.fill("#play-temperature", "1.15")


def test_a_restart_clears_the_chart(tab):
    steps(tab, 3)
    paths = "[...document.querySelectorAll('#play-history > path')].map(one => one.getAttribute('d').length > 0)"
    assert tab.js(paths) == [True, True]
    steps(tab, 0)
    assert tab.js(paths) == [False, False]


def test_temperature_changes_the_dream(tab):
    warm = steps(tab, 12)
    for _ in range(15):
        tab.page.keyboard.press("-")
    assert tab.page.inner_text("#play-temperature-value") == "0.40"
    assert tab.js("worldmodels.shown.play.dream.temperature") == pytest.approx(0.4)
    cold = steps(tab, 12)
    tab.page.fill("#play-temperature", "1.15")
    assert np.abs(warm - cold).max() > 0.5
    assert np.array_equal(steps(tab, 12), warm)


def test_pause_restart_and_players(tab):
    steps(tab, 3)
    assert tab.js("worldmodels.shown.play.state.player") == "human"
    tab.page.keyboard.press("m")
    assert tab.page.is_checked("#play-player input[value=agent]")
    tab.page.keyboard.press("r")
    tab.wait("worldmodels.shown.play.dream.steps > 20")
    assert tab.page.inner_text("#play-pause") == "Pause"
    tab.page.keyboard.press("p")
    assert tab.page.inner_text("#play-pause") == "Play"
    before = tab.js("worldmodels.shown.play.dream.steps")
    tab.page.wait_for_timeout(300)
    assert tab.js("worldmodels.shown.play.dream.steps") == before
    assert float(tab.page.get_attribute("#play-gauge", "aria-valuenow")) >= 0


@pytest.fixture
def baseline():
    level = simd_level()
    wm.set_simd_level("baseline")
    yield
    wm.set_simd_level(level)


def test_the_agents_dream_equals_the_native_trace(tab, baseline):
    agent = Agent.pretrained("takecover")
    dream = Dream.pretrained("takecover", controller=agent.controller, temperature=1.15, termination="sample")
    trace = next(
        trace for seed in range(20) if len((trace := dream.trace(agent.params, seed=seed, max_steps=300)).action) == 300
    )
    seed = next(seed for seed in range(20) if len(dream.trace(agent.params, seed=seed, max_steps=300).action) == 300)
    found = tab.js(
        """(seed) => {
            const dream = worldmodels.world.dream({ seed, temperature: 1.15 }), z = [Array.from(dream.z)], actions = [];
            for (let step = 0; step < 300; step++) {
                const action = dream.act("agent");
                if (dream.step(action).terminated && step < 299) return null;
                actions.push(Array.from(action));
                z.push(Array.from(dream.z));
            }
            return [z, actions];
        }""",
        seed,
    )
    assert np.array_equal(np.array(found[1], np.float32), trace.action)
    assert np.array_equal(np.array(found[0], np.float32), trace.z)


def test_the_exploited_dream_has_its_own_termination(tab):
    assert tab.js("worldmodels.shown.exploited.dream.termination") == "threshold"
    assert tab.js("worldmodels.shown.exploited.dream.temperature") == 0.1
    assert tab.js("worldmodels.shown.agent.dream.termination") == "sample"


def test_seed_and_temperature_come_from_the_address(browser, server):
    with Tab(browser, f"{server.url}#seed=5&temperature=0.5") as tab:
        assert tab.js("worldmodels.shown.play.dream.seed") == 5
        assert tab.page.input_value("#play-temperature") == "0.5"
        # Copying the link does not begin the reader's dream; M does.
        tab.page.click("#play-link")
        assert tab.page.url.endswith("#seed=5&temperature=0.50")
        assert tab.js("worldmodels.shown.play.state.waiting") and tab.page.is_visible("#play-overlay")
        tab.page.keyboard.press("m")
        assert tab.js("[worldmodels.shown.play.state.player, worldmodels.shown.play.state.waiting]") == ["human", False]
        assert tab.page.is_hidden("#play-overlay")
        tab.page.click("#play-next")
        assert tab.page.url.endswith("#seed=6&temperature=0.50")
        tab.check()
    with Tab(browser, f"{server.url}#seed=x&temperature=-1") as tab:
        assert tab.js("worldmodels.shown.play.dream.seed") == 0
        assert tab.page.input_value("#play-temperature") == "1.15"


def picture(tab, name):
    return tab.js(
        f"Array.from(document.getElementById('vision-{name}').getContext('2d').getImageData(0, 0, 64, 64).data)"
    )


def test_own_images_are_encoded(tab, tmp_path):
    from PIL import Image

    before = picture(tab, "reconstruction")
    Image.fromarray(np.full((90, 200, 3), (250, 120, 10), np.uint8)).save(tmp_path / "own.png")
    tab.page.set_input_files("#vision-file", str(tmp_path / "own.png"))
    tab.wait("document.getElementById('vision-message').textContent.startsWith('own.png')")
    assert np.array(picture(tab, "frame")).reshape(-1, 4)[2000].tolist() == [250, 120, 10, 255]
    assert picture(tab, "reconstruction") != before
    (tmp_path / "note.txt").write_text("no image")
    tab.page.set_input_files("#vision-file", str(tmp_path / "note.txt"))
    tab.wait("document.getElementById('vision-message').textContent.startsWith('note.txt: expected')")


def test_latents_are_edited(tab):
    tab.page.fill("#vision-index", "100")
    edited = picture(tab, "edited")
    assert edited == picture(tab, "reconstruction")
    tab.page.fill("#vision-latents input >> nth=0", "3")
    assert picture(tab, "edited") != edited
    tab.page.click("#vision-reset")
    assert picture(tab, "edited") == edited
    tab.page.click("#vision-random")
    assert picture(tab, "edited") != edited


def test_the_sample_lies_in_the_mixture(tab):
    tab.page.fill("#memory-latent", "30")
    tab.page.click("#memory-step")
    found = tab.js(
        """() => {
            const { dream } = worldmodels.shown.memory, { weights, sample } = dream.mixture(30);
            return [Array.from(weights), sample, dream.z[30]];
        }"""
    )
    assert sum(found[0]) == pytest.approx(1, abs=1e-5) and found[1] == found[2]
    assert tab.js("document.querySelectorAll('#memory-density path.fine').length") == 5


def evolve(tab):
    tab.page.fill("#evolve-population", "8")
    tab.page.click("#evolve-start")
    tab.wait("document.getElementById('evolve-status').textContent.startsWith('Generation 1')")
    assert tab.page.is_enabled("#evolve-take")
    tab.page.click("#evolve-start")  # stops
    assert tab.js("worldmodels.shown.evolve.state.worker") is None
    tab.page.click("#evolve-take")
    assert tab.js("worldmodels.shown.play.state.agent") == "yours"


def test_evolution_runs_in_a_worker(browser, server):
    with Tab(browser, server.url) as tab:
        evolve(tab)
        tab.wait("worldmodels.shown.play.dream.steps > 5")
        tab.check()


def test_evolution_is_described(tab):
    shown = tab.page.inner_text("#evolve > p")
    assert "controller whose parameters are zero. Each candidate plays 2 dreams of at most 700 steps." in shown
    ticks = tab.js("[...document.querySelectorAll('#evolve-chart text[text-anchor=end]')].map(one => one.textContent)")
    assert ticks == ["0", "0.5", "1", "generation"]


ONE_CANDIDATE = """
    const post = Worker.prototype.postMessage;
    Worker.prototype.postMessage = function (given) {
        given.settings.popsize = 1;
        post.call(this, given);
    };
"""


def test_errors_are_shown_and_the_other_demonstrations_go_on(browser, server):
    with Tab(browser, server.url, script=ONE_CANDIDATE) as tab:
        tab.page.click("#evolve-start")
        tab.wait("document.getElementById('evolve-status').textContent.startsWith('The evolution stopped: popsize: ')")
        assert tab.page.inner_text("#evolve-start") == "Start"
        tab.check()
        tab.page.click("#play-restart")
        tab.js("() => { worldmodels.shown.play.dream.step = () => { throw new Error('no memory'); }; }")
        tab.page.wait_for_selector("#error:not([hidden])")
        assert tab.page.inner_text("#error") == "A demonstration stopped: no memory"
        assert tab.page.inner_text("#play-pause") == "Play"
        assert tab.errors == ["no memory"]
        tab.page.click("#memory-restart")
        tab.wait("worldmodels.shown.memory.dream.steps > 3")
        assert tab.js("document.getElementById('error').getBoundingClientRect().top") >= 0
        tab.js("() => { Promise.reject(new Error('rejected')); }")
        tab.wait("document.getElementById('error').textContent === 'A demonstration stopped: rejected'")
        tab.js("() => { setTimeout(() => { throw new Error('thrown'); }); }")
        tab.wait("document.getElementById('error').textContent === 'A demonstration stopped: thrown'")
        assert tab.page.is_visible("main")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_plays_by_touch(browser, server, scheme):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with Tab(browser, server.url, **phone) as tab:
        assert tab.js("document.documentElement.scrollWidth") <= 390
        tab.page.tap("#play-start")
        tab.wait("worldmodels.shown.play.dream.steps > 2")
        tab.wait("document.getElementById('play-pad').getBoundingClientRect().bottom <= innerHeight")
        assert tab.js("document.getElementById('play-screen').getBoundingClientRect().top") >= 0
        assert tab.js("worldmodels.shown.play.state.player") == "human"
        red = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
        assert (int(tab.js(red)) < 100) == (scheme == "dark")
        tab.check()


def message(browser, url, script=""):
    with Tab(browser, url, ready=False, script=script) as tab:
        tab.page.wait_for_selector("#error:not([hidden])")
        assert tab.page.is_hidden("main") and tab.page.is_hidden("#loading")
        tab.check()
        return tab.page.inner_text("#error")


def test_a_truncated_file_is_named(browser, one_file, tmp_path):
    cut = tmp_path / "cut.html"
    cut.write_bytes(one_file.read_bytes()[:4_000_000])
    assert "This file is truncated: expected" in message(browser, cut.as_uri())


def test_an_altered_file_is_named(browser, one_file, tmp_path):
    text = one_file.read_text()
    start = text.index(f'data-file="{WEIGHTS}">') + 100_000
    altered = tmp_path / "altered.html"
    altered.write_text(text[:start] + ("A" if text[start] != "A" else "B") + text[start + 1 :])
    found = message(browser, altered.as_uri())
    assert "damaged" in found or "altered" in found


@pytest.mark.parametrize("damage", ["altered", "truncated", "no safetensors"])
def test_damaged_weights_are_named(browser, page, damage):
    weights = bytearray(page.data[WEIGHTS])
    if damage == "altered":
        weights[-5] ^= 1
    elif damage == "truncated":
        del weights[-1000:]
    else:
        weights = bytearray(b"<html>not found</html>")
    with served(Page(page.title, page.about, {**page.data, WEIGHTS: bytes(weights)})) as server:
        found = message(browser, server.url)
        server.shutdown()
    assert found.startswith("dream.safetensors: ")
    assert {"altered": "SHA-256", "truncated": "truncated", "no safetensors": "expected"}[damage] in found


def test_missing_simd_is_named(browser, server):
    assert "SIMD" in message(browser, server.url, script="WebAssembly.validate = () => false")


def test_speed_is_reported(tab):
    tab.page.evaluate("document.getElementById('play').scrollIntoView()")
    found = tab.js(
        """() => {
            const dream = worldmodels.world.dream({ seed: 1 }), time = (count, work) => {
                const start = performance.now();
                for (let at = 0; at < count; at++) work();
                return (performance.now() - start) / count;
            };
            const step = time(200, () => dream.step(dream.act("agent"))), z = dream.z;
            return [step, time(50, () => worldmodels.world.decode(z))];
        }"""
    )
    print(f"\n{found[0]:.2f} ms a step of the dream, {found[1]:.2f} ms a decoded frame")
    assert all(value > 0 for value in found)
    tab.page.click("#play-restart")
    tab.wait("document.getElementById('timing').textContent.includes('frames a second')")
    # A frame for every step at most, whatever the refresh rate.
    tab.wait("worldmodels.shown.play.runner.frames > 10")
    tab.page.wait_for_timeout(1500)
    print(shown := tab.page.inner_text("#timing"))
    assert 0 < int(re.search(r"(\d+) frames a second", shown)[1]) <= 36
