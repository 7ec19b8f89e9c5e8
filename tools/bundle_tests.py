"""Part of tools/bundle: copies the programs of the tests of some suites and prints a line for each test.

Reads `meson introspect --tests` on standard input. Arguments: source root, bundle, suite...
A line has tab-separated: name, deadline [s], then environment and command as one piece of shell text with $here for the bundle.
"""

import json
import os
import shlex
import shutil
import sys


def main():
    root, bundle, *suites = sys.argv[1:]
    data = os.path.join(root, "tests", "data")
    build = {}

    def relocated(word):
        """A word of a command or an environment as it must read inside the bundle, quoted for a shell."""
        if os.path.isabs(word) and os.path.isfile(word) and os.access(word, os.X_OK):
            name = os.path.basename(word)
            if build.setdefault(name, word) != word:
                sys.exit(f"two test programs are called {name}")
            target = os.path.join(bundle, "bin", name)
            if not os.path.exists(target):
                shutil.copy(word, target)
            return '"$here"/bin/' + shlex.quote(name)
        if word == data or word.startswith(data + os.sep):
            return '"$here"/data' + shlex.quote(word[len(data):]) if word != data else '"$here"/data'
        if root in word:
            sys.exit(f"a test refers to {word}, which is not packed")
        return shlex.quote(word)

    for test in json.load(sys.stdin):
        if not {suite.split(":")[-1] for suite in test["suite"]} & set(suites):
            continue
        # Meson adds variables of its own, such as LD_LIBRARY_PATH; ours have our prefix.
        words = [f"{key}={relocated(value)}" for key, value in sorted(test["env"].items()) if key.startswith("MOELINK_")]
        words += [relocated(word) for word in test["cmd"]]
        print(test["name"], test["timeout"], " ".join(["env", *words]), sep="\t")


if __name__ == "__main__":
    main()
