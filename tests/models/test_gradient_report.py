"""The gradient report: what is read, what is said, what is drawn, and that it stands alone."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from hiddenstate_models.cli import app
from hiddenstate_models.errors import ConfigurationError, DataError
from hiddenstate_models.export import random_bundle
from hiddenstate_models.gradients.gates import GateSaturation
from hiddenstate_models.gradients.jacobians import Spectra
from hiddenstate_models.gradients.measurement import Measurement
from hiddenstate_models.gradients.norms import Norms
from hiddenstate_models.gradients.remedies import Subject
from hiddenstate_models.gradients.report import as_json, write_page
from hiddenstate_models.gradients.survival import Survival
from hiddenstate_models.gradients.verdict import Findings, judge
from hiddenstate_models.gradients.words import number, share

TRAINING = (
    "--epochs 2 --lanes 2 --hidden 6 --embedding 6 --vocabulary 20 --k1 8 --k2 8 --accelerator cpu --clip-norm 0.01"
)


def survival(factor: float, steps: int = 60) -> Survival:
    shares = [factor**k for k in range(steps + 1)]
    return Survival([0.7 * s for s in shares], shares, [1.3 * s for s in shares], [64] * (steps + 1), 2.0)


def findings(factor: float, cell: str = "lstm", norms: Norms | None = None, **settings: Any) -> Findings:
    layers = [survival(factor), survival(0.9 * factor)]
    spectra = [Spectra(4, [1, 5, 9], [[0.1, 0.2, 0.5, 0.8, 1.5]] * 3, [0.9] * 3)] * 2
    gates = [GateSaturation(1, "forget", 0.1, 0.7, 0.8), GateSaturation(2, "forget", 0.0, 0.2, 0.6)]
    measurement = Measurement(survival(factor), layers, spectra, gates, norms or Norms())
    return judge(Subject("<b>model</b>", "an LSTM", cell, 40, settings), measurement)


class Resources(HTMLParser):
    """Collects whatever a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={value}")


@pytest.mark.parametrize(("factor", "said"), [(0.8, "vanishes"), (0.99, "lives"), (1.2, "explodes")])
def test_the_verdict_is_said_in_plain_words(factor: float, said: str) -> None:
    assert findings(factor).verdict.headline.startswith(f"The gradient {said}: ")


def test_the_page_stands_alone(tmp_path: Path) -> None:
    norms = Norms([1, 2, 3], [1.0, 30.0, 2.0], [1.0, 1.0, 1.0])
    found = findings(0.8, norms=norms)
    write_page(found, tmp_path)
    page = (tmp_path / "gradients.html").read_text(encoding="utf-8")
    resources = Resources()
    resources.feed(page)
    assert resources.fetched == []
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(resources.open)
    assert "@import" not in page
    assert "url(http" not in page
    assert resources.open.count("svg") == 4
    assert "<h1>The gradient vanishes: " in page
    assert "<b>model</b>" not in page, "names are text"
    assert all(remedy.switch in page for remedy in found.verdict.remedies)
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "gradients.json").read_text())["verdict"]["kind"] == "vanish"


def test_what_is_beyond_all_numbers_is_still_json(tmp_path: Path) -> None:
    grown = [1.0, 1e200, math.inf]
    whole = Survival(grown, grown, grown, [9, 9, 9], 1.0)
    found = judge(Subject("m", "d", "rnn-relu", 2, {}), Measurement(whole, [whole], [], [], Norms()))
    assert found.verdict.kind == "explode"
    write_page(found, tmp_path)
    assert as_json(found)["survival"]["whole"]["median"][-1] is None


CELLS = ("rnn-tanh", "rnn-relu", "lstm", "gru")
STARTS = ("default", "uniform", "orthogonal", "identity", "chrono")


@pytest.mark.parametrize("factor", [0.8, 0.99, 1.2])
def test_remedies_are_switches_of_the_train_command(factor: float) -> None:
    trained = typer.main.get_command(app)
    command = trained.commands["train"].commands["next-word"]  # type: ignore[attr-defined]
    norms = Norms([1, 2, 3, 4], [1.0, 2.0, 30.0, 2.0], [1.0, 1.0, 1.0, 1.0])
    for cell in CELLS:
        for start in STARTS:
            for settings in ({}, {"clip_norm": 1.0}, {"k1": 20, "k2": 40, "learning_rate": 0.1}):
                found = findings(factor, cell, norms, initialisation=start, **settings)
                for remedy in found.verdict.remedies:
                    command.make_context("next-word", remedy.switch.split())


def test_a_remedy_in_use_is_not_suggested() -> None:
    def switches(found: Findings) -> str:
        return " ".join(remedy.switch for remedy in found.verdict.remedies)

    assert "chrono" in switches(findings(0.8))
    assert "chrono" not in switches(findings(0.8, initialisation="chrono"))
    assert "--gradient-regulariser" not in switches(findings(0.8, gradient_regulariser=1.0))
    assert "--clip-norm" in switches(findings(1.2))
    assert "--clip-norm" not in switches(findings(1.2, clip_norm=1.0))
    assert switches(findings(0.99)) == ""


def test_norms_tell_spikes_and_clipping() -> None:
    norms = Norms(list(range(6)), [1.0, 1.0, 1.0, 1.0, 25.0, 0.5], [1.0, 1.0, 1.0, 1.0, 1.0, 0.5])
    assert norms.clipped == pytest.approx(1 / 6)
    assert norms.spikes == 1
    assert norms.median == 1.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "50 %"),
        (0.063, "6.3 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.00004, "0.004 %"),
        (3e-9, "10⁻⁹"),
        (12.0, "1,200 %"),
    ],
)
def test_shares_are_said_in_per_cent(value: float, text: str) -> None:
    assert share(value) == text


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0.98765, 68.34, 12345.6, 1.5e9, math.inf)] == [
        "0.988", "68.3", "12,346", "1.5e+09", "beyond all numbers",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text("\n".join(f"w{i % 7} w{i % 5} w{i % 3} ." for i in range(120)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, book: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "books"
    arguments = ["train", "next-word", "--data", str(book), "--valid", str(book), "--out", str(folder)]
    result = CliRunner().invoke(app, [*arguments, *TRAINING.split()])
    assert result.exit_code == 0, result.output
    assert "The gradient" in result.output
    return folder


def measured(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["gradients", *arguments, "--steps", "20", "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_training_run_saves_the_light_version(run: Path) -> None:
    found = json.loads((run / "gradients.json").read_text())
    assert (run / "gradients.png").exists()
    assert found["verdict"]["kind"] in ("vanish", "live", "explode")
    assert found["subject"]["horizon"] == 8
    assert found["jacobians"] == []
    norms = Norms.load(run)
    assert norms.updates == list(range(1, len(norms.updates) + 1))
    assert found["norms"]["updates"] == len(norms.updates)
    assert max(norms.after) <= 0.01 + 1e-6


def test_a_run_is_measured_on_what_it_learnt_from(run: Path, tmp_path: Path) -> None:
    found = measured(str(run), "--out", str(tmp_path))
    assert found["subject"]["name"] == "books"
    assert "trained" in found["subject"]["description"]
    assert len(found["survival"]["layers"]) == 1
    assert len(found["jacobians"][0]["radii"]) > 1
    assert {gate["name"] for gate in found["gates"]} == {"input", "forget", "output"}
    assert found["norms"]["clipped"] > 0
    assert (tmp_path / "gradients.html").exists()


def test_the_settings_of_a_run_are_measured_untrained(run: Path, tmp_path: Path) -> None:
    trained = measured(str(run), "--out", str(tmp_path / "a"))
    fresh = measured(str(run / "config.toml"), "--out", str(tmp_path / "b"))
    assert "untrained" in fresh["subject"]["description"]
    assert fresh["norms"] is None
    assert fresh["survival"]["whole"]["median"] != trained["survival"]["whole"]["median"]


@pytest.mark.parametrize("cell", ["rnn-tanh", "gru"])
def test_settings_alone_tell_whether_a_network_would_vanish(tmp_path: Path, book: Path, cell: str) -> None:
    path = tmp_path / f"{cell}.toml"
    words = f'cell = "{cell}"\nhidden = "8,8"\nembedding = 8\nvocabulary = 20\n'
    path.write_text(f'task = "next-word"\ndata = ["{book}"]\n[words]\n{words}')
    found = measured(str(path), "--out", str(tmp_path), "--horizon", "15")
    assert found["subject"]["cell"] == cell
    assert found["subject"]["horizon"] == 15
    assert len(found["survival"]["layers"]) == 2


def test_several_networks_are_compared(run: Path, tmp_path: Path) -> None:
    arguments = ["gradients", str(run), str(run / "config.toml"), "--out", str(tmp_path), "--steps", "20"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.output.count("The gradient") == 2
    assert (tmp_path / "gradients-compared.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "books" / "gradients.html").exists()
    assert (tmp_path / "gradients-books-untrained" / "gradients.html").exists()


def test_the_gradient_of_forecasts_is_followed_through_what_writes_and_what_reads(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["value", *(f"{math.sin(i / 5):.3f}" for i in range(400))]))
    path = tmp_path / "settings.toml"
    path.write_text(f'task = "forecasting"\ndata = ["{table}"]\n[forecasting]\nhorizon = 3\nhidden = "6"\n')
    found = measured(str(path), "--out", str(tmp_path))
    assert "of the steps back the first 3 are those that it writes" in found["subject"]["description"]
    assert found["subject"]["horizon"] == 35 + 3
    assert found["survival"]["whole"]["median"][0] == 1
    assert found["survival"]["whole"]["pairs"][0] > 8
    assert 0 < found["survival"]["whole"]["factor"] < 1
    bundle = random_bundle(tmp_path / "bundle", "forecasting", horizon=5)
    found = measured(str(bundle.folder), "--data", str(table), "--out", str(tmp_path / "report"))
    assert "the first 5 are those that it writes" in found["subject"]["description"]


@pytest.mark.parametrize("network", [{}, {"cell": "lstm", "projection": 4}, {"columns": 2, "targets": [1]}])
def test_a_bundle_of_values_is_measured(tmp_path: Path, network: dict[str, Any]) -> None:
    bundle = random_bundle(tmp_path, "next-value", **network)
    table = tmp_path / "table.csv"
    names = bundle.config.values.columns if bundle.config.values else ()
    rows = (",".join(f"{math.sin(i / 5 + j):.3f}" for j, _ in enumerate(names)) for i in range(300))
    table.write_text("\n".join([",".join(names), *rows]))
    found = measured(str(bundle.folder), "--data", str(table), "--out", str(tmp_path / "report"))
    assert found["survival"]["whole"]["pairs"][0] > 8


def test_what_cannot_be_measured_is_said(tmp_path: Path, book: Path) -> None:
    def fails(*arguments: str) -> None:
        CliRunner().invoke(app, ["gradients", *arguments], catch_exceptions=False)

    with pytest.raises(DataError, match="neither a training run"):
        fails(str(tmp_path))
    bundle = random_bundle(tmp_path, "next-word")
    with pytest.raises(DataError, match="name files with --data"):
        fails(str(bundle.folder))
    nonsense = tmp_path / "x.toml"
    nonsense.write_text('task = "juggling"')
    with pytest.raises(ConfigurationError, match="'juggling', which cannot be trained; there are next-word"):
        fails(str(nonsense))
    nonsense.write_text("task = ")
    with pytest.raises(ConfigurationError, match="cannot read"):
        fails(str(nonsense), "--data", str(book))
