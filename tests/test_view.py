"""The page to explore: what it shows, who may ask for it, and the page itself in a real browser, by clicks."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import browser, opened  # noqa: F401 (a fixture)
from torch import Tensor, nn
from typer.testing import CliRunner

import parspike
from parspike.errors import InputError, MissingExtraError, OptionError
from parspike.view.page import Page, mosaic
from parspike.view.scene import Scene, scene_of
from parspike.view.serve import Served, allowed, serve

X = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(30) % 5


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(108, 20), nn.ReLU(), nn.Linear(20, 5)
        ).eval()


@pytest.fixture(scope="module")
def snns() -> dict[str, parspike.SNN]:
    model = network()
    return {
        "weighted": parspike.convert(model, X, T=4, code="weighted", recipe="max"),
        "if": parspike.convert(model, X, T=6, neuron=parspike.IF(v_init="half"), recipe="max"),
        "T=2": parspike.convert(model, X, T=2, recipe="max"),
        "T=8": parspike.convert(model, X, T=8, recipe="max"),
    }


def a_scene(snns: dict[str, parspike.SNN]) -> Scene:
    two = {name: snns[name] for name in ("weighted", "if")}
    by_T = {2: snns["T=2"], 8: snns["T=8"]}
    return scene_of(two, [(X[:16], Y[:16]), (X[16:], Y[16:])], network(), by_T, 20, None, {1: "<i>one</i>"}, None)


@pytest.fixture(scope="module")
def scene(snns: dict[str, parspike.SNN]) -> Scene:
    return a_scene(snns)


# -------------------------------------------------------------------------------------------------- what is shown


def test_the_answer_after_every_step_of_neurons_with_a_state(scene: Scene, snns: dict[str, parspike.SNN]) -> None:
    shown = scene.shown("if", 6, 3)
    wanted = snns["if"].run(X[3:4], every_step=True).logits[:, 0]
    torch.testing.assert_close(shown.answers, wanted)
    assert not torch.allclose(wanted[0], wanted[-1])


@pytest.mark.parametrize("name", ["weighted", "T=8"])
def test_the_answer_of_parallel_neurons_is_what_their_trains_say_so_far(
    name: str, snns: dict[str, parspike.SNN]
) -> None:
    snn = snns[name]
    shown = scene_of(snn, X[:4], None, None, 4, None, None, None).shown("network", snn.T, 2)
    run = snn.run(X[2:3], record=True)
    neuron = snn.neurons()[snn.graph.neurons[-1].name]
    weight, bias = snn.tensors()["5.weight"], snn.tensors()["5.bias"]
    current = run.spikes["4"][:, 0] * neuron.amplitudes()  # (T, 20)
    for t in range(1, snn.T + 1):
        torch.testing.assert_close(shown.answers[t - 1], weight @ current[:t].mean(0) + bias, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shown.answers[-1], run.logits[0], rtol=1e-4, atol=1e-5)


def test_trains_are_those_of_the_run(scene: Scene, snns: dict[str, parspike.SNN]) -> None:
    for name, T in (("weighted", 4), ("if", 6)):
        run = snns[name].run(X[5:6], record=True)
        for layer in ("1", "4"):
            np.testing.assert_array_equal(scene.shown(name, T, 5).train(layer), run.spikes[layer][:, 0].numpy())


def test_the_page_says_what_the_networks_say(scene: Scene, snns: dict[str, parspike.SNN]) -> None:
    page = Page(scene)
    weighted, fires, by_T = page.columns
    for number in (0, 7, 19):
        page.item.value = number
        logits = network()(X[number : number + 1])
        assert f"the network itself says <b>{_called(int(logits.argmax()))}</b>" in page.about.text
        assert f"label <b>{_called(int(Y[number]))}</b>" in page.about.text
        each = snns["if"].run(X[number : number + 1], every_step=True).logits[:, 0].argmax(1).tolist()
        for t in range(1, 9):
            page.time.value = t
            assert fires.answer.text == f"after {min(t, 6)} of 6 steps: <b>class {_called(each[min(t, 6) - 1])}</b>"
        for T in (2, 8):
            said = int(snns[f"T={T}"](X[number : number + 1]).argmax())
            assert f"T = {T}: <b>class {_called(said)}</b>" in by_T.by_T.text
    assert len(weighted.lines.data["xs"]) == 5


def _called(number: int) -> str:
    return {1: "1 &lt;i&gt;one&lt;/i&gt;"}.get(number, str(number))


def test_moving_t_shows_another_network(scene: Scene, snns: dict[str, parspike.SNN]) -> None:
    page = Page(scene)
    column = page.columns[2]
    for place, T in enumerate((2, 8)):
        column.chosen.active = place
        assert column.shown.snn is snns[f"T={T}"]
        assert f"T = {T}, sorted" in column.what.text
        assert column.spikes.data["dw"] == [T]


def test_the_raster_and_the_maps_follow(scene: Scene, snns: dict[str, parspike.SNN]) -> None:
    page = Page(scene)
    column = page.columns[1]
    page.item.value, page.layer.value, page.time.value = 2, "1", 3
    train = snns["if"].run(X[2:3], record=True).spikes["1"][:, 0]
    np.testing.assert_array_equal(column.spikes.data["image"][0], train.flatten(1).T.numpy())
    assert column.future.left == 3
    image = column.maps.data["image"][0][::-1]
    wanted = train[:3].float().mean(0).numpy()
    np.testing.assert_allclose(image[:6, :6], wanted[0])
    np.testing.assert_allclose(image[:6, 7:13], wanted[1])
    np.testing.assert_allclose(image[7:, :6], wanted[2])
    assert np.isnan(image[6]).all()
    page.layer.value = "4"
    assert column.raster.title.text == "4: 20 neurons"
    flat = column.maps.data["image"][0][::-1].reshape(-1)[:20]
    np.testing.assert_allclose(flat, snns["if"].run(X[2:3], record=True).spikes["4"][:3, 0].float().mean(0).numpy())


def test_large_layers_are_thinned() -> None:
    image, what = mosaic(np.random.default_rng(0).random((500, 230, 230)))
    assert image.size < 200_000
    assert "every 3th place" in what
    assert "of 500" in what
    assert mosaic(np.arange(7.0))[0].shape == (3, 3)
    assert mosaic(np.zeros(()))[0].shape == (1, 1)
    assert mosaic(np.zeros((3, 0, 5)))[0].size >= 0


def test_values_are_no_classes() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    snn = parspike.convert(model, X, T=4, recipe="max")
    page = Page(scene_of(snn, X[:3], model, None, 9, None, None, None))
    assert "values" in page.columns[0].answer.text
    assert "network itself" not in page.about.text


def test_what_does_not_fit_is_refused(snns: dict[str, parspike.SNN]) -> None:
    snn = snns["weighted"]
    for arguments, kind, part in (
        ((network(), X), InputError, "takes a converted network"),
        (({}, X), InputError, "takes a converted network"),
        ((snn, X[:, :, :5]), InputError, "batch 0 of the items"),
        ((snn, []), InputError, "no items"),
        ((snn, X, {"by_T": {3: snn}}), OptionError, "their own T"),
        ((snn, X, {"port": -1}), OptionError, "port"),
        ((snn, X, {"most": 0}), OptionError, "most"),
        ((snn, X, {"model": nn.Linear(99, 3)}), InputError, r"the network itself \(model=, --against\) fails"),
    ):
        first, items, options = (*arguments, {})[:3]
        with pytest.raises(kind, match=part):
            parspike.view(first, items, browser=False, ready=lambda url: pytest.fail("it serves"), **options)


# --------------------------------------------------------------------------------------------------- who may ask


@pytest.fixture(scope="module")
def served(snns: dict[str, parspike.SNN]) -> Iterator[Served]:
    made: list[Served] = []
    up = threading.Event()

    def run() -> None:
        made.append(serve(a_scene(snns)))
        up.set()
        made[0].run()

    thread = threading.Thread(target=run)
    thread.start()
    assert up.wait(60)
    yield made[0]
    made[0].stop()
    thread.join(30)
    assert not thread.is_alive()


def parts(url: str) -> tuple[int, str]:
    found = re.fullmatch(r"http://127\.0\.0\.1:([0-9]+)/([A-Za-z0-9_-]{32})/", url)
    assert found is not None, url
    return int(found[1]), found[2]


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """A request as it is written, with `..` left in."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_page_needs_its_token_and_host(served: Served) -> None:
    port, token = parts(served.url)
    status, body = ask(port, f"/{token}/")
    assert status == 200
    assert b"parspike view" in body
    assert b"http://" not in body.replace(f"http://127.0.0.1:{port}".encode(), b"").replace(b"http://www.w3.org", b"")
    assert b"https://" not in body
    wrong = token[:-1] + ("A" if token[-1] != "A" else "B")
    for path in ("/", "//", f"/{wrong}/", f"/{token[:-1]}/", f"/{token}x/", "/static/js/bokeh.min.js", f"/?{token}",
                 f"//{token}/", f"/static/../{token}/", "/favicon.ico", "/ws", f"/{wrong}/ws"):  # fmt: skip
        assert ask(port, path)[0] == 403, path
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "", f"[::1]:{port}",
                 f"127.0.0.1.evil.example:{port}"):  # fmt: skip
        assert ask(port, f"/{token}/", Host=host)[0] == 403, host
    assert ask(port, f"/{token}/", Host=f"localhost:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", "http://127.0.0.1"):
        assert ask(port, f"/{token}/", Origin=origin)[0] == 403, origin
    assert ask(port, f"/{token}/", Origin=f"http://127.0.0.1:{port}")[0] == 200
    assert ask(port, f"/{wrong}/", "POST", Content_Length="0")[0] == 403


def test_two_hosts_in_one_request_are_refused(served: Served) -> None:
    port, token = parts(served.url)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        lines = f"GET /{token}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        line.sendall(lines.encode())
        answer = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert answer.split(b" ", 2)[1] in (b"400", b"403")


def test_a_websocket_of_another_page_is_refused(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    port, token = parts(served.url)
    monkeypatch.setenv("BOKEH_ALLOW_WS_ORIGIN", "evil.example")  # opens Bokeh's own check, not the gate
    shake = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
             "Sec_WebSocket_Version": "13"}  # fmt: skip
    assert ask(port, f"/{token}/ws", Origin="http://evil.example", **shake)[0] == 403
    assert ask(port, f"/{'x' * 32}/ws", Origin=f"http://127.0.0.1:{port}", **shake)[0] == 403


def test_no_file_outside_is_served(served: Served) -> None:
    port, token = parts(served.url)
    assert ask(port, f"/{token}/static/js/bokeh.min.js")[0] == 200
    up = "%2e%2e/" * 7
    for path in ("static/../../../../../../../../etc/passwd", "static/js/../../../../serve.py", "static//etc/passwd",
                 f"static/{up}etc/passwd", "static/extensions/../../etc/passwd",
                 "static/..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd", "../../etc/passwd", "static/js"):  # fmt: skip
        status, body = ask(port, f"/{token}/{path}")
        assert status in (403, 404), path
        assert b"root:" not in body


def test_only_this_machine_is_listened_to(served: Served) -> None:
    port, _ = parts(served.url)
    open_ports = Path("/proc/net/tcp")
    if not open_ports.exists():
        pytest.skip("needs Linux's list of sockets")
    listening = [line.split()[1] for line in open_ports.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_every_page_has_another_token(snns: dict[str, parspike.SNN], served: Served) -> None:
    tokens = set()
    for _ in range(3):
        other = serve(scene_of(snns["T=2"], X[:1], None, None, 1, None, None, None))
        tokens.add(parts(other.url)[1])
        other.loop.add_callback(other.loop.stop)
        other.run()
    assert len({*tokens, parts(served.url)[1]}) == 4
    with pytest.raises(OptionError, match="cannot be listened on"):
        serve(scene_of(snns["T=2"], X[:1], None, None, 1, None, None, None), parts(served.url)[0])


def test_what_may_pass() -> None:
    own = frozenset({"127.0.0.1:80"})
    assert allowed("127.0.0.1:80", None, "/abc/x", own, "abc")
    assert allowed("127.0.0.1:80", "http://127.0.0.1:80", "/abc", own, "abc")
    own_origin = "http://127.0.0.1:80"
    for host, origin, path in (
        ("127.0.0.1:80", None, "/ab/x"),
        ("127.0.0.1:80", None, "abc/x"),
        ("127.0.0.1:80", None, "//abc/"),
        ("127.0.0.1:80", None, "/é/"),
        ("127.0.0.1:80", "http://h", "/abc/"),
        ("h:80", own_origin, "/abc/"),
    ):
        assert not allowed(host, origin, path, own, "abc")


# ------------------------------------------------------------------------------------------------ in the browser


def text(page: Any, name: str, number: int = 0) -> str:
    return page.locator(f".{name}").nth(number).locator(".bk-clearfix").inner_text()


def until(page: Any, said: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """What is said, once it is what is wanted; an error where it never is."""
    for _ in range(600):
        if wanted(found := said()):
            return found
        page.wait_for_timeout(100)
    pytest.fail(f"still {str(said())[:200]}")


def settled(page: Any, picture: Any) -> bytes:
    """A picture of a part of the page, once it no longer changes."""
    last = [b""]

    def same(now: bytes) -> bool:
        last.append(now)
        return now == last[-2]

    return until(page, picture.screenshot, same)


def test_by_clicks(browser: Any, served: Served, snns: dict[str, parspike.SNN]) -> None:  # noqa: F811
    # One by one, as the page runs them: kernels may round otherwise for another batch size.
    runs = [snns["if"].run(x[None], every_step=True) for x in X[:12]]
    each = torch.cat([run.logits for run in runs], 1).argmax(2)
    # An input whose answer changes over time.
    number = next(n for n in range(1, 12) if each[0, n] != each[-1, n])
    with opened(browser, served.url) as seen:
        page = seen.page
        page.locator(".answer").nth(2).wait_for()
        assert "after 6 of 6 steps" in text(page, "answer", 1)
        raster, strip = (page.locator(f".{name}").first for name in ("raster", "strip"))
        before = settled(page, raster)
        # By its picture.
        box = strip.bounding_box()
        page.mouse.click(box["x"] + 5 + (number + 0.5) * (box["width"] - 10) / 12, box["y"] + box["height"] * 0.7)
        about = until(page, lambda: text(page, "about"), lambda said: said.startswith(f"input {number},"))
        assert f"label {Y[number]}" in about
        until(page, raster.screenshot, lambda now: now != before)
        # By its number.
        page.get_by_label("input").fill("15")
        page.keyboard.press("Enter")
        until(page, lambda: text(page, "about"), lambda said: said.startswith("input 15,"))
        page.get_by_label("input").fill(str(number))
        page.keyboard.press("Enter")
        until(page, lambda: text(page, "about"), lambda said: said.startswith(f"input {number},"))
        # The time, by the keyboard and by playing.
        handle = page.locator(".noUi-handle").first
        handle.focus()
        handle.press("Home")
        first = until(page, lambda: text(page, "answer", 1), lambda said: said.startswith("after 1 of 6"))
        assert first.endswith(_shown(int(each[0, number])))
        page.get_by_role("button", name="play").click()
        last = until(page, lambda: text(page, "answer", 1), lambda said: said.startswith("after 6 of 6"))
        assert last.endswith(_shown(int(each[-1, number])))
        page.get_by_role("button", name="play").wait_for()  # it stopped at the end
        # The network converted for another T.
        said = text(page, "what", 2)
        assert "T = 8, sorted" in said
        page.get_by_role("button", name="T = 2").click()
        until(page, lambda: text(page, "what", 2), lambda said: "T = 2, sorted" in said)
        answer = int(snns["T=2"](X[number : number + 1]).argmax())
        until(page, lambda: text(page, "answer", 2), lambda said: said == f"after 2 of 2 steps: class {_shown(answer)}")
        # Another layer.
        before = settled(page, raster)
        page.get_by_label("layer").select_option("4")
        until(page, raster.screenshot, lambda now: now != before)
        assert seen.overflow() <= 0


def _shown(number: int) -> str:
    return {1: "1 <i>one</i>"}.get(number, str(number))


# --------------------------------------------------------------------------------------------------- command line


def test_the_command_serves_until_ctrl_c(snns: dict[str, parspike.SNN], tmp_path: Path) -> None:
    snns["weighted"].save(tmp_path / "a.parspike")
    snns["if"].save(tmp_path / "b.parspike")
    np.savez(tmp_path / "data.npz", images=X.numpy(), labels=Y.numpy())
    options = ["--data", "data.npz", "--no-browser"]
    command = [sys.executable, "-m", "parspike", "view", "a.parspike", "b.parspike", *options]
    environment = {**os.environ, "PYTHONPATH": str(Path(parspike.__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            port, token = parts(url)
            assert ask(port, f"/{token}/")[0] == 200
            assert ask(port, "/")[0] == 403
            assert process.stdout.readline() == "Ctrl-C ends it\n"
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert (process.returncode, rest, errors) == (0, "", "")


def test_the_command_refuses_at_once(snns: dict[str, parspike.SNN], tmp_path: Path, monkeypatch: Any) -> None:
    from parspike.cli import app

    monkeypatch.chdir(tmp_path)
    snns["weighted"].save("a.parspike")
    np.savez("data.npz", images=X.numpy())
    for arguments, part in (
        (("none.parspike",), "there is no file"),
        (("a.parspike", "--T", "1,2"), "--against SPEC"),
        (("a.parspike", "--weights", "w.pt"), "--against SPEC"),
        (("a.parspike", "a.parspike"), "more than once"),
    ):
        done = CliRunner().invoke(app, ["view", *arguments, "--data", "data.npz", "--no-browser"])
        assert done.exit_code == 1
        assert part in done.stderr
    monkeypatch.setattr("parspike.cli.view.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["view", "a.parspike", "--data", "data.npz"])
    assert "parspike[view]" in done.stderr
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(MissingExtraError, match=r"parspike\[view\]"):
        parspike.view(snns["weighted"], X, browser=False)


def test_the_command_converts_for_every_t(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parspike.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(
        "import torch\nfrom torch import nn\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5))\n"
    )
    np.savez("data.npz", images=X.numpy())
    made = CliRunner().invoke(
        app, ["convert", "net.py:make", "--data", "data.npz", "--recipe", "max", "-T", "4", "-o", "a.parspike"]
    )
    assert made.exit_code == 0, made.stderr
    given: dict[str, Any] = {}
    monkeypatch.setattr(parspike, "view", lambda networks, items, **more: given.update(more, networks=networks))
    options = ["--against", "net.py:make", "--T", "1,3", "--recipe", "max", "--mean", "0.5", "--no-browser"]
    done = CliRunner().invoke(app, ["view", "a.parspike", "--data", "data.npz", *options])
    assert done.exit_code == 0, done.stderr
    assert {T: snn.T for T, snn in given["by_T"].items()} == {1: 1, 3: 3}
    assert list(given["networks"]) == ["a.parspike"]
    assert isinstance(given["model"], nn.Module)
    assert "fitted on" in done.stderr
    original: Tensor = given["picture"](X[0] - 0.5)
    torch.testing.assert_close(original, X[0])
    assert json.dumps(given["names"])
