import pytest

from fedbone.config import build_dir, get_profile, is_full_run, own_data
from fedbone.errors import UserError


def test_the_profile_comes_from_the_argument_then_the_environment(monkeypatch):
    monkeypatch.setenv("FEDBONE_PROFILE", "cpu")
    assert get_profile().name == "cpu"
    monkeypatch.setenv("FEDBONE_PROFILE", "t5")
    with pytest.raises(UserError, match=r"t5.*cpu, t4, t4-article, a100"):
        get_profile()
    assert get_profile("cpu").name == "cpu"


def test_rounds_from_the_environment_and_explicit_ones_win(monkeypatch):
    monkeypatch.setenv("FEDBONE_ROUNDS", "4")
    assert get_profile("cpu").rounds == 4
    assert get_profile("cpu", rounds=9).rounds == 9
    assert not is_full_run()
    for bad in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv("FEDBONE_ROUNDS", bad)
        with pytest.raises(UserError, match="FEDBONE_ROUNDS"):
            get_profile("cpu")


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDBONE_BUILD", str(tmp_path / "a b" / "build"))
    assert build_dir() == (tmp_path / "a b" / "build").resolve()
    assert build_dir().is_dir()
    monkeypatch.delenv("FEDBONE_DATA", raising=False)
    assert own_data() is None
    monkeypatch.setenv("FEDBONE_DATA", str(tmp_path))
    assert own_data() == tmp_path.resolve()


@pytest.mark.parametrize(
    ("name", "value"),
    [("rounds", 0), ("batch", 0), ("cooldown", 2.0), ("local_epochs", 0), ("local_epochs", -1), ("local_epochs", 0.3)],
)
def test_a_schedule_that_means_nothing_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        get_profile("cpu", **{name: value})
