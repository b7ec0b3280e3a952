"""A server in the game's place that fails on demand: `python -m tests.support.faulty_sc2_server -port PORT ...`."""

import os
import sys
import time
from pathlib import Path

from marl.envs.sc2.server_game import api
from marl.envs.smac.sc2 import serve
from marl.envs.smac.sc2.embedded_game import common


class FaultyHandler:
    """Answers as the server does, until a file in its data folder, `once` or `always`, says what to do instead.

    The file holds a failure and the request that it is the answer to, such as `crash step`.
    """

    def __init__(self, inner, folder):
        self.inner, self.folder = inner, folder

    @property
    def over(self):
        return self.inner.over

    def handle(self, message):
        answer = self.inner.handle(message)
        request = api.Request.FromString(message)
        for file in (self.folder / "once", self.folder / "always"):
            if file.exists():
                kind, name = file.read_text().split()
                if request.WhichOneof("request") == name:
                    if file.name == "once":
                        file.unlink()
                    print("faults:", kind, file=sys.stderr, flush=True)
                    return self.misbehave(kind, api.Response.FromString(answer))
        return answer

    def misbehave(self, kind, response):
        if kind == "garbage":
            return bytes([255]) * 40
        if kind == "nothing":
            return b""
        if kind == "text":
            return "no bytes"
        if kind == "hang":
            time.sleep(600)
        if kind == "hangup":
            raise ConnectionAbortedError
        if kind == "crash":
            os._exit(3)
        if kind == "error":
            response.error.append("out of vespene")
        if kind == "ended":
            response.status = api.ended
        if kind == "stub":
            response.observation.observation.game_loop = 2**32 - 1
        if kind == "id":
            response.id += 1
        if kind == "status":
            response.ClearField("status")
        if kind == "area":
            response.game_info.start_raw.playable_area.CopyFrom(
                common.RectangleI(p0={"x": 2, "y": 1}, p1={"x": 30, "y": 25})
            )
        if kind == "refuse":
            response.create_game.error = api.ResponseCreateGame.MissingMap
            response.create_game.error_details = "no such map here"
        return response.SerializeToString()


if __name__ == "__main__":
    parsed = serve.parse_arguments(sys.argv[1:])
    handler = FaultyHandler(serve.make_session(parsed), Path(parsed.dataDir))
    sys.exit(serve.run_server(handler, parsed.listen, parsed.port))
