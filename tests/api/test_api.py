"""Every request of /api/openapi.json against a running cell: Schemathesis makes thousands of them up, right and wrong ones.

Promise: no answer of the cell's own failure, none that the description does not name, and nothing without proof but the
calls that are said to be public. Needs the built program and the package schemathesis:

    python3 -m unittest discover -v -s tests/api -p 'test_*.py'

GROVE_API_EXAMPLES (8) is how many requests of each kind are made up, GROVE_API_SEED (1) from which seed.
"""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
TARGET = os.path.join(ROOT, os.environ.get("CARGO_TARGET_DIR", "target"))
GROVE = os.environ.get("GROVE", os.path.join(TARGET, "debug", "grove"))
EXAMPLES = os.environ.get("GROVE_API_EXAMPLES", "8")
SEED = os.environ.get("GROVE_API_SEED", "1")
# What ends the cell, waits for ever, takes in any file of this machine, or takes the proof away that the others need: these are
# asked one by one below.
BY_HAND = ["/api/v1/restart", "/api/v1/recover", "/api/v1/events", "/api/v1/add"]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SCHEMATHESIS = os.path.join(os.path.dirname(sys.executable), "schemathesis")
TIME_MAX_S = 900


def free_port():
    # None that the kernel gives to connections of others before the cell has it.
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) != 0:
                return port


class Api(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.root = tempfile.mkdtemp(prefix="grove-api-")
        cls.addClassCleanup(shutil.rmtree, cls.root, True)
        cls.dir, cls.home = os.path.join(cls.root, "state"), os.path.join(cls.root, "home")
        cls.url = f"http://127.0.0.1:{free_port()}"
        port = cls.url.rsplit(":", 1)[1]
        # Relative paths that are made up lead below this folder.
        place = os.path.join(cls.root, "here")
        os.mkdir(place)
        base = [GROVE, "--dir", cls.dir, "--home", cls.home, "--port", port, "--peer-port", str(free_port())]
        subprocess.run([*base, "init", "--name", "api"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        config = os.path.join(cls.dir, "config.json")
        settings = {}
        if os.path.exists(config):
            with open(config, encoding="utf-8") as file:
                settings = json.load(file)
        settings.update({"lan.discovery": False, "portmap": False, "peer.listen": "127.0.0.1"})
        with open(config, "w", encoding="utf-8") as file:
            json.dump(settings, file)
        cls.log = open(os.path.join(cls.root, "log"), "w+", encoding="utf-8", errors="replace")
        cls.addClassCleanup(cls.log.close)
        cls.cell = subprocess.Popen([*base, "run"], cwd=place, stdin=subprocess.DEVNULL, stdout=cls.log, stderr=cls.log)
        cls.addClassCleanup(cls.end)
        cls.wait_up()
        with open(os.path.join(cls.dir, "peer_secret"), encoding="utf-8") as file:
            cls.secret = file.read().strip()
        for name in ["letter.txt", "pictures/boat.txt", "pictures/sea.txt"]:
            file = os.path.join(cls.home, name)
            os.makedirs(os.path.dirname(file), exist_ok=True)
            with open(file, "w", encoding="utf-8") as out:
                out.write(name * 10)

    @classmethod
    def end(cls):
        cls.cell.send_signal(signal.SIGTERM)
        try:
            cls.cell.wait(15)
        except subprocess.TimeoutExpired:
            cls.cell.kill()
            cls.cell.wait()

    @classmethod
    def wait_up(cls):
        until = time.monotonic() + 120
        while True:
            try:
                if cls.ask("GET", "/healthz", proof=None)[0] == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > until:
                raise AssertionError(f"the cell does not answer:\n{cls.told()}")
            time.sleep(0.1)

    @classmethod
    def told(cls):
        cls.log.seek(0)
        return "".join(cls.log.readlines()[-30:])

    @classmethod
    def ask(cls, method, path, body=None, proof="secret", timeout=120):
        """Status and bytes of an answer."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if proof:
            headers["Authorization"] = f"Bearer {cls.secret if proof == 'secret' else proof}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(cls.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def document(self):
        status, text = self.ask("GET", "/api/openapi.json")
        self.assertEqual(status, 200)
        return json.loads(text)

    def test_answers_are_as_the_description_says(self):
        command = [
            SCHEMATHESIS, "run", f"{self.url}/api/openapi.json", "--url", self.url,
            "--header", f"Authorization: Bearer {self.secret}", "--checks", CHECKS, "--phases", "examples,coverage,fuzzing",
            "--max-examples", EXAMPLES, "--seed", SEED, "--no-shrink", "--continue-on-failure", "--request-timeout", "120", "--warnings", "off",
            "--no-color", "--generation-database", "none",
        ]
        for path in BY_HAND:
            command += ["--exclude-path", path]
        outcome = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=TIME_MAX_S)
        if outcome.returncode != 0:
            self.fail(f"{outcome.stdout[-60000:]}\n{outcome.stderr[-3000:]}\nthe cell said:\n{self.told()}")
        self.assertIsNone(self.cell.poll(), "the cell has ended")

    def test_what_is_asked_by_hand_is_refused_with_words(self):
        for path, body in [
            ("/api/v1/add", {}), ("/api/v1/add", {"paths": 1}), ("/api/v1/add", {"paths": ["from here"]}),
            ("/api/v1/recover", {}), ("/api/v1/recover", {"phrase": "a", "peer": "b", "plain": True}), ("/api/v1/recover", {"phrase": 1, "peer": [], "plain": True}),
            ("/api/v1/restore", {"path": 5}), ("/api/v1/restore", {"path": "a", "to": "to here"}), ("/api/v1/restore", {"id": "none"}), ("/api/v1/restore", {"paths": []}), ("/api/v1/restore", {"paths": ["a"], "to": "b"}),
            ("/api/v1/rm", {"paths": ["a"], "path": "a"}), ("/api/v1/move", {"paths": ["a"], "from": "a", "to": "b"}), ("/api/v1/move", {"paths": ["a"]}),
        ]:
            status, text = self.ask("POST", path, body)
            self.assertIn(status, (400, 403, 409), (path, body, text))
            self.assertTrue(json.loads(text)["error"]["message"], (path, body, text))

    def test_without_proof_only_what_is_public_is_answered(self):
        document = self.document()
        count = 0
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                count += 1
                for proof in (None, "0" * 64):
                    place = path.replace("{id}", "1").replace("{peer}", "1")
                    body = {} if method in ("post", "put", "patch") else None
                    status, _ = self.ask(method.upper(), place, body, proof=proof)
                    if operation["security"] == []:
                        self.assertNotIn(status, (404, 405), (method, path))
                    else:
                        self.assertIn(status, (401, 403), (method, path, proof))
        self.assertGreaterEqual(count, 100)
        public = [path for path, all in document["paths"].items() for one in all.values() if one["security"] == []]
        self.assertEqual(public, ["/healthz", "/api/v1/session", "/api/v1/setup", "/api/v1/login", "/api/v1/logout"])


if __name__ == "__main__":
    unittest.main()
