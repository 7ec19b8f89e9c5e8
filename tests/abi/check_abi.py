#!/usr/bin/env python3
"""The symbol map, the public headers and the built library agree on what MoELink exports and needs."""

import argparse
import re
import subprocess
import sys

# Shared objects that the library may need; everything else is looked up at run time.
ALLOWED_NEEDED = [
    r"libstdc\+\+\.so\.\d+",
    r"libm\.so\.\d+",
    r"libgcc_s\.so\.\d+",
    r"libc\.so\.\d+",
    r"ld-linux.*\.so\.\d+",
    r"libsodium\.so\.\d+",
]


def output_of(*command, **kwargs):
    return subprocess.run(command, check=True, capture_output=True, text=True, **kwargs).stdout


def map_symbols(path):
    """Names under `global:` of all nodes, and the names of the nodes."""
    with open(path, encoding="utf-8") as file:
        text = re.sub(r"/\*.*?\*/|#[^\n]*", "", file.read(), flags=re.S)
    symbols, nodes = [], []
    for node, body in re.findall(r"(\w[\w.]*)\s*\{(.*?)\}", text, flags=re.S):
        nodes.append(node)
        scope = "global"
        for item in re.findall(r"(\w+)\s*:|([^\s;{}]+)\s*;", body):
            if item[0]:
                scope = item[0]
            elif scope == "global":
                symbols.append(item[1])
    return symbols, nodes


def own_lines(preprocessed):
    """The preprocessed text that comes from MoELink's headers, not from the system's."""
    lines, ours = [], False
    for line in preprocessed.splitlines():
        marker = re.match(r'# \d+ "([^"]*)"', line)
        if marker:
            ours = "/moelink/" in marker.group(1)
        elif ours:
            lines.append(line)
    return "\n".join(lines)


def declared_functions(include_dir, compiler):
    """Functions that moelink.h declares, and file-scope variables (there should be none)."""
    text = own_lines(output_of(*compiler, "-E", "-std=c99", "-I", include_dir, "-x", "c", "-",
                               input="#include <moelink/moelink.h>\n"))
    text = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", text)
    while re.search(r"\{[^{}]*\}", text):  # bodies of structs and enums, the innermost first
        text = re.sub(r"\{[^{}]*\}", " ", text)
    functions, others = [], []
    for statement in text.split(";"):
        statement = " ".join(statement.split())
        if not statement or re.match(r"(typedef|struct|enum|union|static)\b[^()]*$|typedef\b|static\b", statement):
            continue
        name = re.search(r"(\w+)\s*\(", statement)
        if name:
            functions.append(name.group(1))
        else:
            others.append(statement)
    return functions, others


def exported_symbols(library):
    """Versioned names that the library defines for others; the version nodes themselves left out."""
    names = []
    for line in output_of("nm", "-D", "--defined-only", library).splitlines():
        kind, name = line.split()[-2:]
        if kind != "A":
            names.append(name.split("@")[0])
    return names


def needed_objects(library):
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", library))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--map", required=True)
    parser.add_argument("--headers", required=True)
    parser.add_argument("compiler", nargs="+")
    args = parser.parse_args()

    problems = []
    mapped, nodes = map_symbols(args.map)
    declared, others = declared_functions(args.headers, args.compiler)
    exported = exported_symbols(args.library)
    needed = needed_objects(args.library)

    for name in sorted(name for name in set(mapped) if mapped.count(name) > 1):
        problems.append(f"{name} is in the map more than once")
    for statement in others:
        problems.append(f"a public header declares what is not a function: {statement}")
    for what, have, where, want in (
        ("headers", declared, "map", mapped),
        ("map", mapped, "headers", declared),
        ("map", mapped, "library", exported),
        ("library", exported, "map", mapped),
    ):
        for name in sorted(set(have) - set(want)):
            problems.append(f"{name} is in the {what} but not in the {where}")
    for name in sorted(set(mapped + declared + exported)):
        if not name.startswith("moelink_"):
            problems.append(f"{name} does not begin with moelink_")
    for node in nodes:
        if not re.fullmatch(r"MOELINK_\d+(\.\d+)*", node):
            problems.append(f"the map's node {node} is not named like MOELINK_0.1")
    for name in needed:
        if not any(re.fullmatch(pattern, name) for pattern in ALLOWED_NEEDED):
            problems.append(f"the library needs {name}, which it should look up at run time or not use at all")

    for problem in problems:
        print(problem)
    print(f"{len(mapped)} symbols in the map, {len(set(declared))} in the headers, {len(exported)} exported; "
          f"needs {' '.join(needed)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
