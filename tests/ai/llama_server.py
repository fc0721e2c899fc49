"""llama.cpp's own server in this process (PyPI xllamacpp), with the options of `llama-server` that Grove uses.

usage: llama_server.py -m MODEL --port PORT [--host H] [--alias NAME] [-c CONTEXT] [-np SLOTS] [--api-key-env]
"""
import argparse
import os
import signal
import sys

import xllamacpp

options = argparse.ArgumentParser(allow_abbrev=False)
options.add_argument("-m", dest="model", required=True)
options.add_argument("--host", default="127.0.0.1")
options.add_argument("--port", type=int, required=True)
options.add_argument("--alias")
options.add_argument("-c", dest="context", type=int, default=4096)
options.add_argument("-np", dest="slots", type=int, default=1)
options.add_argument("--embedding", action="store_true")
options = options.parse_args()

if not os.path.exists(options.model):
    sys.exit("error: the model does not exist")
params = xllamacpp.CommonParams()
params.model.path = options.model
params.hostnames = [options.host]
params.port = options.port
params.n_ctx = options.context
params.n_parallel = options.slots
# More threads than free cores collapse: they spin.
params.cpuparams.n_threads = 1
params.cpuparams_batch.n_threads = 1
for endpoint in ("endpoint_metrics", "endpoint_slots", "endpoint_props"):
    setattr(params, endpoint, True)
if options.alias:
    params.model_alias = {options.alias}
if options.embedding:
    params.embedding = True
    params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
key = os.environ.get("LLAMA_API_KEY")
if key:
    params.api_keys = [key]
server = xllamacpp.Server(params)
print("listening", server.listening_address, flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
os._exit(0)
