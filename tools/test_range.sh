#!/usr/bin/env bash
# Contract, hosts and pruning tests against the lowest and the newest transformers of the declared range, each in an
# environment of its own on top of .venv (the same torch). The lowest must pass; a newest release above the pinned one
# that fails is reported and does not fail the run.
set -euo pipefail
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1 TOKENRY_OFFLINE=1 HF_HUB_OFFLINE=1

tests=(tests/hosts tests/pruning tests/text/test_lexinvariant.py tests/text/test_byteprobs.py tests/codecs/test_audio_hosts.py
  $(ls tests/*/test_*contract*.py | grep -v ^tests/pruning))
bound() { sed -n "s/^$1 = \"\(.*\)\"/\1/p" src/tokenry/hosts/release.py; }
packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

environment() { # folder, requirement
  rm -rf "$1"
  .venv/bin/python -m venv "$1"
  echo "import site; site.addsitedir('$(packages .venv)')" > "$(packages "$1")/base.pth"
  "$1/bin/pip" install --quiet --disable-pip-version-check -c <(grep '^torch==' constraints.txt) --upgrade "$2"
}
version() { "$1/bin/python" -c 'import transformers; print(transformers.__version__)'; }
run() { "$1/bin/python" -m pytest -n "${JOBS:-2}" --dist loadfile -p no:cacheprovider "${tests[@]}"; }

environment .venv-range/lowest "transformers==$(bound LOWEST)"
echo "== lowest: transformers $(version .venv-range/lowest)"
run .venv-range/lowest

environment .venv-range/newest "transformers<6"
newest=$(version .venv-range/newest)
if [ "$newest" = "$(bound NEWEST)" ]; then
  echo "== newest: transformers $newest is the pinned release, which the whole suite runs on"
elif run .venv-range/newest; then
  echo "== newest: transformers $newest passes; raise NEWEST in hosts/release.py and the pin in constraints.txt"
else
  echo "== newest: transformers $newest FAILS the tests above (reported only: the pinned release is $(bound NEWEST))"
fi
