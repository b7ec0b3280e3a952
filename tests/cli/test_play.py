"""`marl play`: videos, text and attention, as a user types it."""

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from marl.envs.smac import make
from marl.envs.smac.render.image import HEADER
from marl.envs.smac.render.video import END_FRAMES
from marl.errors import MissingDependencyError
from marl.experiments import cli
from marl.experiments import play as watch

ROOT = Path(__file__).parents[2]
TINY = ["--agent", "mat", "--num-envs", "2", "--rollout-steps", "8", "--steps", "16", "--eval-episodes", "1"]


@pytest.fixture
def marl(tmp_path, monkeypatch, capsys):
    """Types a command in an empty folder: `marl("play", ...)` gives the exit code and all output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["marl", *args])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    return call


def frames_of(path, most=1000):
    """The first pictures of a video, as another program reads them."""
    frames = []
    with tempfile.TemporaryDirectory() as folder:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path, "-fps_mode", "passthrough"]
        command += ["-frames:v", str(most), f"{folder}/%05d.bmp"]
        subprocess.run(command, check=True, capture_output=True)
        for name in sorted(Path(folder).iterdir()):
            with Image.open(name) as picture:
                frames.append(np.asarray(picture))
    return frames


def test_a_whole_battle_becomes_a_video_and_ends_as_text(marl):
    code, said = marl("play", "smac/3m", "--agent", "random")
    assert code == 0
    steps = int(re.search(r"in (\d+) steps; (?:terminated|reached)", said)[1])
    assert said.count("smac/3m, step") == 1
    assert f"smac/3m, step {steps} of 60" in said
    assert "allies: marine" in said
    assert "wrote play.mp4" in said
    assert imageio_ffmpeg.count_frames_and_secs("play.mp4")[0] == 1 + 4 * steps + END_FRAMES
    (frame,) = frames_of("play.mp4", 1)
    env = make("3m")
    env.reset(watch.paired_seeds(1, "test")[0])
    (first,) = env.film().draw()
    assert frame.shape == first.shape
    assert np.abs(frame.astype(int) - first).mean() < 3.0, "the first picture is that of the same seed"


def test_a_gif_of_two_episodes(marl):
    code, said = marl("play", "smac/3m", "--episodes", "2", "--stop-after", "2", "--out", "films/battle.gif")
    assert code == 0
    assert said.count("return 0 in 2 steps; stopped by --stop-after") == 2
    with Image.open("films/battle.gif") as picture:
        assert picture.format == "GIF"
        assert picture.n_frames == 2 * (1 + 4 * 2)
        assert picture.info["loop"] == 0
        assert picture.info["duration"] == pytest.approx(1000 / 30, abs=5)


def test_text_is_printed_at_each_step_and_no_video_is_written(marl):
    code, said = marl("play", "smac/3m", "--view", "text", "--stop-after", "3")
    assert code == 0
    assert re.findall(r"step (\d) of 60", said) == ["0", "1", "2", "3"]
    assert not list(Path().iterdir())


def test_text_games_still_play_as_text(marl):
    for args in ([], ["--view", "text"]):
        code, said = marl("play", "toy/chain", "--stop-after", "2", *args)
        assert code == 0
        assert re.findall(r"toy/chain, step (\d)", said) == ["0", "1", "2"]
    assert not list(Path().iterdir())


def test_environments_that_only_draw_pictures_still_make_videos(marl):
    picture = "gymnasium:CartPole-v1"
    pytest.importorskip("pygame")
    code, said = marl("play", picture, "--stop-after", "3", "--view", "video")
    assert code == 0
    assert len(frames_of("play.mp4")) == 4
    code, said = marl("play", picture, "--stop-after", "3", "--view", "text")
    assert code == 2
    assert "draws pictures, not text; leave out --view text" in said


WRONG = [
    (["toy/chain", "--view", "video"], "toy/chain draws text, not pictures; leave out --view video"),
    (["toy/chain", "--view", "film"], "film"),
    (["smac/3m", "--attention"], "agent 'random' has no attention to draw"),
    (["smac/3m", "--out", "film.avi"], ".mp4 or .gif"),
]


@pytest.mark.parametrize(("args", "expected"), WRONG)
def test_wrong_wishes_are_named_and_leave_nothing_behind(marl, args, expected):
    code, said = marl("play", *args)
    assert code == 2
    assert expected in said
    assert "Traceback" not in said
    assert not list(Path().iterdir())


def colored(frames):
    """Return the number of magenta pixels of the map over all frames. Only attention is magenta."""
    maps = [frame[HEADER:-40].astype(int) for frame in frames]
    return sum(int((picture[..., 1] < picture[..., ::2].min(-1) - 30).sum()) for picture in maps)


def test_attention_is_drawn_where_it_is_asked_for(marl):
    assert marl("train", "smac/3m", "--name", "a", *TINY)[0] == 0
    for name, extra in (("plain", []), ("looks", ["--attention"])):
        code, said = marl("play", "runs/a", "--stop-after", "3", "--out", f"{name}.mp4", *extra)
        assert code == 0, said
    plain, looks = frames_of("plain.mp4"), frames_of("looks.mp4")
    assert len(plain) == len(looks) == 13
    assert colored(plain) == 0
    assert colored(looks[:1]) == 0, "nothing was decided before the first picture"
    assert all(colored([frame]) > 0 for frame in looks[1:])
    code, said = marl("play", "runs/a", "--attention", "--view", "text")
    assert code == 2
    assert "attention is drawn in pictures only" in said


def test_attention_where_the_environment_does_not_draw_it(marl):
    assert marl("train", "toy/climbing", "--name", "a", *TINY)[0] == 0
    code, said = marl("play", "runs/a", "--attention")
    assert code == 2
    assert "toy/climbing does not draw attention; leave out --attention" in said


@pytest.mark.parametrize(("module", "file"), [("imageio.v2", "a.gif"), ("imageio_ffmpeg", "a.mp4")])
def test_without_the_video_packages_an_extra_that_holds_them_is_named(monkeypatch, tmp_path, module, file):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"seqmarl\[(\w+)\]") as caught:
        watch.open_video(tmp_path / file, 30)
    extra = re.search(r"seqmarl\[(\w+)\]", str(caught.value))[1]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"imageio", "imageio-ffmpeg"} <= {line.split(">")[0] for line in extras[extra]}
