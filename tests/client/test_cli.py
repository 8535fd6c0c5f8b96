"""The `hiddenstate` command, as processes against the real server."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from hiddenstate import Client

COMMAND = str(Path(sys.executable).with_name("hiddenstate"))


@pytest.fixture
def environment(server: str) -> dict[str, str]:
    """Points the command to the server by environment."""
    return {**os.environ, "HIDDENSTATE_SERVER": server, "TERM": "xterm", "COLUMNS": "120", "PYTHONUTF8": "1"}


def run(
    environment: dict[str, str], *arguments: str, stdin: str = "", code: int = 0
) -> subprocess.CompletedProcess[str]:
    """The finished command, after a look at how it ended."""
    done = subprocess.run(
        [COMMAND, *arguments], input=stdin, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_models(environment: dict[str, str]) -> None:
    table = run(environment, "models").stdout
    assert re.search(r"next-word@1 +word +LSTM", table)
    listed = json.loads(run(environment, "models", "--json").stdout)
    names = ["forecasting", "music", "next-value", "next-word", "outlook", "weather"]
    assert [model["name"] for model in listed] == names
    assert listed[5]["targets"] == [0, 1]


def test_sessions(environment: dict[str, str], server: str) -> None:
    with Client(server) as client, client.session("next-word", id="listed-here") as session:
        session.observe("the")
        assert re.search(r"listed-here +next-word@1 +1 ", run(environment, "sessions").stdout)
        listed = json.loads(run(environment, "sessions", "--json", "--model", "next-word").stdout)
        assert ("listed-here", 1) in [(entry["id"], entry["step"]) for entry in listed]
        assert json.loads(run(environment, "sessions", "--json", "--model", "weather").stdout) == []


def test_type_line_by_line(environment: dict[str, str], server: str) -> None:
    with Client(server) as client:
        vocabulary = client.model("next-word").vocabulary
    assert vocabulary is not None
    first, second = [word for word in vocabulary.words if re.fullmatch(r"w\d+", word)][:2]
    text = f"The {first}, unheard\n\n{second}\n"
    lines = run(environment, "type", stdin=text).stdout.splitlines()
    assert re.split(r"  +", lines[0]) == ["word", "surprise", "expected next"]
    assert [line.split()[0] for line in lines[1:6]] == ["the", first, ",", "unheard", second]
    with Client(server) as client, client.session("next-word") as session:
        words = session.observe_many(["the", first, ",", "unheard", "<eos>", "<eos>", second])
        assert lines[1].split()[1] == f"{words[0].surprise:.2f}"
        assert lines[5].split()[2] == words[-1].top[0][0]
        counted = [words[i].surprise for i in (0, 1, 2, 3, 6)]
    assert lines[-1] == f"5 words (1 unknown to the model), perplexity {math.exp(sum(counted) / 5):,.1f}"


def test_generate(environment: dict[str, str], server: str) -> None:
    arguments = ("generate", "The w7", "--words", "12", "--seed", "3", "--temperature", "1.5", "--top-k", "30")
    text = run(environment, *arguments).stdout
    assert text == run(environment, *arguments).stdout
    with Client(server) as client, client.session("next-word") as session:
        session.observe("the w7")
        words = [word for word, _ in session.generate(12, seed=3, temperature=1.5, top_k=30, stop="<eos>")]
    expected = " ".join(["The w7", *words]).replace("<unk>", "…").removesuffix(" <eos>")
    for mark in (",", ".", "'s"):
        expected = expected.replace(f" {mark}", mark)
    assert text == expected + "\n"
    assert len(run(environment, "generate", "--words", "3", "--seed", "1").stdout.split()) <= 3
    assert "takes numbers" in failing(environment, "generate", "--model", "next-value")


def test_watch_numbers(environment: dict[str, str], server: str) -> None:
    numbers = [20.0, 21.0, 20.5, math.nan, 20.7, 500.0]
    lines = run(environment, "watch", stdin="20\n21.0\n20.5\n\nnan\n20.7\n500\n").stdout.splitlines()
    assert "90 % interval" in lines[0]
    with Client(server) as client, client.session("next-value") as session:
        column = session.observe_many(numbers)
    low, high = column.interval(0.9)
    for i in (1, 2, 4):
        expected = ["", f"{numbers[i]:.2f}", f"{column.mean[i - 1]:.2f}", f"{low[i - 1]:.2f}", f"{high[i - 1]:.2f}"]
        cells = lines[i + 1].replace("…", " ").split()
        assert cells[1:5] == expected[1:]
        assert cells[-1 if cells[-1] != "anomaly" else -3] == f"{column.mean[i]:.2f}"
    assert lines[4].endswith("missing")
    assert lines[6].endswith("◀ anomaly")
    assert lines[8] == "5 values, 1 missing"
    persistence = (1 + 0.5 + 0.2 + 479.3) / 4
    assert f"against {persistence:.4g} of persistence" in lines[10]


def test_watch_a_file_by_column(environment: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "values.csv"
    rows = [f"2020-01-{i + 1:02},{math.sin(i):.3f},{100 + math.cos(i):.3f}" for i in range(28)]
    file.write_text("day,wave,level\n" + "\n".join(rows) + "\n")
    both = run(environment, "watch", str(file), "-c", "level", "--column", "2", "--level", "0.5").stdout
    assert re.search(r"^2020-01-28 +level ", both, re.MULTILINE)
    assert re.search(r"^2020-01-28 +wave ", both, re.MULTILINE)
    assert "50 % interval" in both
    assert "wave: 28 values" in both
    assert "day" in run(environment, "watch", str(file), "-c", "nope", code=1).stderr
    weather = run(environment, "watch", str(file), "--model", "weather", "-c", "2", "-c", "3").stdout
    assert "level: 28 values" in weather
    for kind in ("png", "svg"):
        plot = tmp_path / f"plot.{kind}"
        run(environment, "watch", str(file), "-c", "wave", "-c", "level", "--plot", str(plot))
        assert plot.stat().st_size > 10_000
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_anomalies_follow_their_level(environment: dict[str, str]) -> None:
    numbers = "\n".join(str(math.sin(i)) for i in range(40))
    strict = run(environment, "watch", "--anomaly", "0.5", stdin=numbers).stdout
    loose = run(environment, "watch", "--anomaly", "0.9999", stdin=numbers).stdout
    assert strict.count("◀") > loose.count("◀")


def failing(environment: dict[str, str], *arguments: str, stdin: str = "") -> str:
    """The one sentence a failing command says."""
    done = run(environment, *arguments, stdin=stdin, code=1)
    (sentence,) = done.stderr.splitlines()
    return sentence


def test_errors_are_one_sentence(environment: dict[str, str], unused_port: int, tmp_path: Path) -> None:
    nowhere = f"localhost:{unused_port}"
    for command in (["models"], ["sessions"], ["watch"], ["type"]):
        sentence = failing(environment, *command, "--server", nowhere, stdin="1\n")
        assert sentence.startswith(f"no server can be reached at {nowhere}")
    assert "next-value/1" in failing(environment, "watch", "--model", "other", stdin="1\n")
    complaint = failing(environment, "watch", "--model", "next-word", stdin="1\n")
    assert "next-word is no next-value model, which watch needs" in complaint
    assert "takes numbers" in failing(environment, "type", "--model", "next-value", stdin="word\n")
    assert "No such file" in failing(environment, "watch", str(tmp_path / "missing.csv"))
    assert failing(environment, "watch") == "the input has no values"
    assert "takes 2 columns together" in failing(environment, "watch", "-c", "1", "--model", "weather", stdin="1,2\n")
    assert "cannot be drawn" in failing(environment, "watch", "--plot", str(tmp_path / "x.nix"), stdin="1\n2\n")
    assert run(environment, "watch", "--level", "1.5", code=2).stderr
    assert run(environment, "--version").stdout.startswith("hiddenstate ")


def test_plot_without_matplotlib(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    sentence = failing({**environment, "PYTHONPATH": str(tmp_path)}, "watch", "--plot", "x.png", stdin="1\n")
    assert sentence == "--plot needs matplotlib: pip install 'hiddenstate[plot]'"


def test_lines_are_answered_as_they_come_and_ctrl_c_ends_with_the_summary(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [COMMAND, "watch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for number in range(1, 4):
            process.stdin.write(f"{number}\n")
            process.stdin.flush()
            if number == 1:
                assert process.stdout.readline().startswith("at ")
            assert process.stdout.readline().startswith(f"{number} ")
        process.send_signal(signal.SIGINT)
        assert "3 values" in process.stdout.read()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


def test_a_reader_that_goes_away_ends_it_quietly(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [COMMAND, "watch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write("\n".join(map(str, range(500))))
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0


class Terminal:
    """The command in a terminal that says where its cursor is, as real ones do."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.process = pexpect.spawn(
            COMMAND, list(arguments), env=environment, encoding="utf-8", timeout=60, dimensions=(24, 110)
        )

    def expect(self, pattern: str) -> "re.Match[str]":
        """Waits for text, colours left out."""
        while self.process.expect([pattern, re.escape("\x1b[6n")]) == 1:
            self.process.send("\x1b[5;1R")
        assert isinstance(self.process.match, re.Match)
        return self.process.match


def test_type_in_a_terminal(environment: dict[str, str]) -> None:
    terminal = Terminal(environment, "type")
    terminal.expect("Ctrl-D leaves")
    terminal.expect("%")  # words are expected before any was typed
    terminal.process.send("the ")
    terminal.expect("surprised by")
    terminal.process.send("w3")
    terminal.process.send("\t")  # the rest of the first candidate, and a space
    terminal.expect("perplexity")
    terminal.process.send("\x7f\x7f\x7f\x7f\x7f\x7f")  # back over a word that was observed
    terminal.process.send("\r")
    terminal.expect("›.*%")  # the next line
    terminal.process.send("\x04")
    summary = terminal.expect(r"(\d+) words?.*, perplexity [\d.]+")
    assert int(summary[1]) >= 1
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 0


def test_type_in_a_terminal_without_a_server(environment: dict[str, str], unused_port: int) -> None:
    terminal = Terminal(environment, "type", "--server", f"localhost:{unused_port}")
    terminal.expect("no server can be reached")
    terminal.process.expect(pexpect.EOF)
    terminal.process.close()
    assert terminal.process.exitstatus == 1


def test_numbers_typed_in_a_terminal(environment: dict[str, str]) -> None:
    terminal = Terminal(environment, "watch")
    terminal.expect("Ctrl-D ends")
    terminal.process.send("5\r")
    terminal.expect("5.0 ")
    terminal.process.send("\x04")
    terminal.expect("1 values")
    terminal.process.expect(pexpect.EOF)
