"""What the package shows to the world."""

import inspect
import subprocess
import sys
from importlib.resources import files

import pytest

import hiddenstate
from hiddenstate import errors


def test_every_public_name_is_exported() -> None:
    public = {name for name, value in vars(hiddenstate).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(hiddenstate.__all__)
    assert sorted(hiddenstate.__all__) == hiddenstate.__all__


@pytest.mark.parametrize("name", [name for name in hiddenstate.__all__ if inspect.isclass(getattr(hiddenstate, name))])
def test_every_public_name_is_documented(name: str) -> None:
    exported = getattr(hiddenstate, name)
    assert inspect.getdoc(exported)
    for member, value in vars(exported).items():
        if not member.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{member} is not documented"


def test_every_error_is_exported_and_stands_in_the_tree() -> None:
    for name, value in vars(errors).items():
        if inspect.isclass(value) and issubclass(value, hiddenstate.HiddenstateError):
            assert name in hiddenstate.__all__
            assert f" {name}" in (errors.__doc__ or "")


def test_both_clients_have_the_same_methods() -> None:
    for blocking, awaited in [("Client", "AsyncClient"), ("Session", "AsyncSession"), ("Fleet", "AsyncFleet")]:
        first, second = getattr(hiddenstate, blocking), getattr(hiddenstate, awaited)
        names = {name for name in dir(first) if not name.startswith("_")}
        # AsyncClient keeps its address in an attribute, Client in a property
        assert names - {"server"} == {name for name in dir(second) if not name.startswith("_")} - {"server"}
        for name in names:
            if inspect.isfunction(getattr(first, name)):
                assert inspect.signature(getattr(first, name)).parameters.keys() == (
                    inspect.signature(getattr(second, name)).parameters.keys()
                )


def test_types_are_shipped() -> None:
    assert files("hiddenstate").joinpath("py.typed").is_file()


def test_import_is_light() -> None:
    """What takes long to import is imported where it is needed."""
    heavy = "{'grpc', 'rich', 'typer', 'prompt_toolkit', 'matplotlib', 'torch', 'onnxruntime', 'scipy'}"
    program = f"import sys, hiddenstate; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
