#!/usr/bin/env bash
# Builds the programs of the release before this one into target/previous, for the upgrade test (tests/e2e/upgrade.rs).
# Does nothing where they are there already. VIPROUTE_PREVIOUS=/some/dir makes the test take them from elsewhere.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

# The last commit whose records have schema 1.
commit=7f5a4331c591
to=target/previous

[ "$(cat $to/commit 2>/dev/null || true)" != $commit ] || exit 0
git cat-file -e "$commit^{commit}" 2>/dev/null || {
    echo "tests/previous.sh: the commit $commit isn't in this clone: run git fetch --unshallow" >&2
    exit 1
}
rm -rf $to
mkdir -p $to/source
git archive $commit | tar -x -C $to/source
# Its own directory: in the common one its programs would take the place of those under test.
(cd $to/source && CARGO_PROFILE_DEV_DEBUG=0 cargo build --bins --locked --target-dir ../build)
cp $to/build/debug/viproute $to/build/debug/viprouted $to/build/debug/viproutectl $to
rm -rf $to/source $to/build
echo $commit >$to/commit
