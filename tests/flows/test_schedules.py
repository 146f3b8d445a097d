import re
import shlex
import shutil
import subprocess

import pytest
from prefect.client.schemas.schedules import CronSchedule

from pixelmill.flows.schedules import cron_to_calendar, format_schedule, own_command
from pixelmill.tasks.store import Store

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")

CRONS = {
    "0 2 * * *": "*-*-* 2:0:00",
    "*/15 * * * *": "*-*-* *:0/15:00",
    "30 22 * * 1-5": "Mon,Tue,Wed,Thu,Fri *-*-* 22:30:00",
    "0 0 1,15 * *": "*-*-1,15 0:0:00",
    "5 4 * 1-3 *": "*-1..3-* 4:5:00",
    "0 3 * * 0": "Sun *-*-* 3:0:00",
    "0 3 * * 6,7": "Sat,Sun *-*-* 3:0:00",
    "0 9-17/2 * * *": "*-*-* 9..17/2:0:00",
}


@pytest.mark.parametrize(("cron", "calendar"), CRONS.items())
def test_a_cron_expression_becomes_a_calendar(cron, calendar):
    assert cron_to_calendar(cron) == calendar
    CronSchedule(cron=cron)


@analyze
def test_systemd_takes_every_calendar():
    subprocess.run(
        ["systemd-analyze", "calendar", *CRONS.values()], check=True, capture_output=True
    )


@pytest.mark.parametrize(
    ("cron", "told"),
    [
        ("0 2 * *", "expected minute, hour"),
        ("60 2 * * *", "minute of 0 to 59"),
        ("0 2 * * mon", "weekday of 0 to 7"),
        ("0 2 1 * 1", "not both"),
        ("*/0 * * * *", "minute"),
        ("0 0 * * 5-1", "from low to high"),
    ],
)
def test_what_is_no_time_is_told(cron, told):
    with pytest.raises(ValueError, match=told):
        cron_to_calendar(cron)


@analyze
def test_the_units_are_what_systemd_takes(tmp_path):
    folder = tmp_path / "line 1, 50%"
    folder.mkdir()
    arguments = ("nightly", str(folder / "my $night.yaml"), "--out", "s3://bucket/a b")
    for kind in ("service", "timer"):
        text = format_schedule(kind, arguments, name="50 % 'night'", folder=folder)
        (tmp_path / f"pixelmill-nightly.{kind}").write_text(text)
    units = [str(tmp_path / f"pixelmill-nightly.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        capture_output=True,
        text=True,
    )
    ours = [line for line in done.stderr.splitlines() if "pixelmill" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_cron_line_is_five_fields_and_a_command_that_a_shell_reads(tmp_path):
    folder = tmp_path / "50% of it"
    line = format_schedule("cron", ("nightly", "/a b.yaml"), name="x", folder=folder)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    match = re.fullmatch(r"((?:\S+ ){5})(.+)\n", line)
    assert match is not None
    CronSchedule(cron=match[1].strip())
    assert not re.search(r"(?<!\\)%", match[2]), "a bare % ends the command"
    words = shlex.split(match[2].replace("\\%", "%"))
    assert words[:3] == ["cd", str(folder), "&&"]
    assert words[3:-2] == [*own_command(), "nightly", "/a b.yaml"]


def as_systemd_reads(line: str) -> str:
    return line.replace("%%", "%").replace("$$", "$")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["service", "cron"])
def test_what_is_printed_does_a_night_where_next_to_nothing_is_set(
    kind, copy_scenes, tiny_config, prefect_home, tmp_path, monkeypatch, run
):
    folder, home = tmp_path / "line 1", tmp_path / "home"
    copy_scenes(folder / "images", 3)
    home.mkdir()
    (home / ".prefect").symlink_to(prefect_home)
    monkeypatch.chdir(folder)
    where = (tiny_config, "images", "--out", "store", "--cluster", "inline")
    printed = run("nightly", *where, "--print", kind)[1]
    if kind == "cron":
        command, started_in = printed.split(maxsplit=5)[5].rstrip("\n").replace("\\%", "%"), home
    else:
        unit = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
        command, started_in = map(as_systemd_reads, (unit["ExecStart"], unit["WorkingDirectory"]))
    night = subprocess.run(
        ["/bin/sh", "-c", command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        cwd=started_in,
        capture_output=True,
        text=True,
    )
    log = folder / "pixelmill-nightly.log"
    told = log.read_text() if kind == "cron" else night.stdout + night.stderr
    assert night.returncode == 0, told
    assert "3 images of" in told
    assert set(Store(folder / "store").images().groupby("model").size()) == {3}
