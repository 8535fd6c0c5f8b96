"""The code of docs/bring-your-own.md, as it stands there, from a model of one's own to a session."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.end_to_end.conftest import serving

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def run_python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_takes_a_model_of_ones_own_to_a_session(tmp_path: Path) -> None:
    forecaster, session, language = blocks("python")
    run_python(forecaster + language, tmp_path)
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines[:2] + session.splitlines()) <= 10, "it should stay as short as that"
    for line in lines:
        program, *flags = shlex.split(line)
        if program == "hiddenstate-models":
            command = [sys.executable, "-m", "hiddenstate_models", *flags]
            subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
        else:
            assert line == "hiddenstate-server --models models"
    with serving(tmp_path, "--models", str(tmp_path / "models")) as (address, _):
        assert "localhost:50051" in session
        mean = run_python(session.replace("localhost:50051", address), tmp_path).split()[0]
        told = f"""
from hiddenstate import Client
with Client({address!r}) as client, client.session("language") as session:
    print(len(session.observe("The cat sat").top))
"""
        assert int(run_python(told, tmp_path)) > 0
    again = forecaster.replace("torch.save", "# ") + (
        "model.load_state_dict(torch.load('forecaster.pt'))\n"
        "values = (torch.tensor([20.9, 21.0, 21.4, 21.3]) - 20) / 4\n"
        "print(float(model(values.view(1, -1, 1))[0, -1, 0]) * 4 + 20)\n"
    )
    assert abs(float(mean) - float(run_python(again, tmp_path))) < 1e-4
