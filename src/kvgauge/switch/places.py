"""Where a manifest tells an engine what to do: the containers that run one, their variables and command lines. Pure."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from kvgauge.switch.spans import CannotPatch, Mapped, scalar, shell_words
from kvgauge.switch.table import ENGINES

BYTES_MAX = 1 << 20
NODES_MAX = 200_000  # with every alias written out
_TEMPLATE = re.compile(r"\{\{-?\s*(\.|\$|/\*|if\b|else\b|end\b|range\b|with\b|include\b|define\b|template\b|to\w+\b)")
_SHELL = re.compile(r"^(/usr)?(/bin/)?(ba|da|z|a|k)?sh$")
_NOT_ENGINES = ("frontend", "planner", "epp", "router")
_ENGINE_WORDS = {
    "dynamo.vllm": "vllm",
    "vllm.entrypoints.openai.api_server": "vllm",
    "dynamo.trtllm": "trtllm",
    "trtllm-serve": "trtllm",
    "dynamo.sglang": "sglang",
    "sglang.launch_server": "sglang",
}
_IMAGES = (
    ("tensorrtllm", "trtllm"),
    ("tensorrt-llm", "trtllm"),
    ("trtllm", "trtllm"),
    ("sglang", "sglang"),
    ("vllm", "vllm"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """A word of a command line.

    script   the shell script it stands in, and `ends` where in it; None for an element of a YAML list
    node     the YAML scalar
    """

    mapped: Mapped
    node: yaml.ScalarNode
    script: Mapped | None = None
    ends: int = 0

    @property
    def text(self) -> str:
        return self.mapped.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Variables:
    """A list of environment variables: key `key` of the mapping `parent`; entries None where there is no such key."""

    key: str
    parent: yaml.MappingNode
    entries: yaml.SequenceNode | None
    shared: str = ""  # the graph's own list, which every service sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One container that runs an engine.

    name       what markers call it: Kind/name/service or container
    variables  its lists, the one that wins first, the graph's own last
    """

    name: str
    graph: str
    service: str | None
    container: str | None
    role: str | None
    engine: str | None
    variables: tuple[Variables, ...]
    words: tuple[Word, ...]
    arguments: yaml.SequenceNode | None
    outside: tuple[tuple[str, str], ...]  # (kind, name) of ConfigMaps and Secrets its variables also come from
    devices: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Manifest:
    text: str
    documents: list[yaml.Node | None]
    places: list[Place]
    config_maps: dict[str, yaml.MappingNode] = field(default_factory=dict)
    shared: Counter[int] = field(default_factory=Counter)


def read(text: str) -> Manifest:
    """The places of a manifest of one or more documents.

    raises CannotPatch  for a template, for what is no YAML, or no Kubernetes manifest
    """
    if len(text) > BYTES_MAX:
        raise CannotPatch(f"a manifest of {len(text)} characters; at most {BYTES_MAX} are read")
    template = _TEMPLATE.search(text)
    if template is not None:
        line = text.count("\n", 0, template.start()) + 1
        raise CannotPatch(
            f"line {line}: this is a Helm template; render it first (`helm template ... > manifest.yaml`), or put the "
            "settings into your values.yaml: `kvgauge switch` without --patch prints them"
        )
    try:
        documents: list[yaml.Node | None] = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError) as error:
        raise CannotPatch(f"no YAML: {' '.join(str(error).split())[:300]}") from None
    manifest = Manifest(text=text, documents=documents, places=[])
    for document in documents:
        if document is not None:
            _count(document, manifest.shared)
            if _written_out(document, {}) > NODES_MAX:
                raise CannotPatch(f"its YAML aliases stand for more than {NODES_MAX} values, or for themselves")
    for document in documents:
        for resource in _resources(document):
            _add(manifest, resource)
    twice = [name for name, count in Counter(place.name for place in manifest.places).items() if count > 1]
    if twice:
        raise CannotPatch(
            f"two containers are called {twice[0]}; give them different names, or switch them in two files"
        )
    return manifest


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for when each alias is written out; one that holds itself stands for too many."""
    if id(node) not in known:
        known[id(node)] = NODES_MAX + 1
        parts = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = min(1 + sum(_written_out(part, known) for part in parts), NODES_MAX + 1)
    return known[id(node)]


def _count(node: yaml.Node, seen: Counter[int]) -> None:
    """An anchored node that is used again is counted each time."""
    stack = [node]
    while stack:
        top = stack.pop()
        seen[id(top)] += 1
        if seen[id(top)] > 1:
            continue
        if isinstance(top, yaml.SequenceNode):
            stack += top.value
        elif isinstance(top, yaml.MappingNode):
            stack += [part for pair in top.value for part in pair]


def _resources(document: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if not isinstance(document, yaml.MappingNode):
        return
    if text_at(document, "kind") == "List":
        for item in _items(get(document, "items")):
            yield from _resources(item)
    else:
        yield document


def _add(manifest: Manifest, resource: yaml.MappingNode) -> None:
    kind, name = text_at(resource, "kind") or "?", text_at(resource, "metadata", "name") or "?"
    space = text_at(resource, "metadata", "namespace")
    owner = "".join(f"{kind}/{f'{space}:' if space else ''}{name}".split())
    if kind == "ConfigMap":
        manifest.config_maps[name] = resource
    elif kind == "DynamoGraphDeployment":
        manifest.places += _graph(manifest, resource, owner)
    else:
        for part, pod in _pods(resource):
            for container in _items(get(pod, "containers")):
                if isinstance(container, yaml.MappingNode):
                    manifest.places.append(_container(manifest, container, f"{owner}{part}"))


def _pods(resource: yaml.MappingNode) -> Iterator[tuple[str, yaml.MappingNode]]:
    paths = [
        ("spec",),
        ("spec", "template", "spec"),
        ("spec", "jobTemplate", "spec", "template", "spec"),
        ("spec", "leaderWorkerTemplate", "leaderTemplate", "spec"),
        ("spec", "leaderWorkerTemplate", "workerTemplate", "spec"),
    ]
    for path in paths:
        pod = get(resource, *path)
        if isinstance(pod, yaml.MappingNode) and get(pod, "containers") is not None:
            yield (f"/{path[2]}" if "leaderWorkerTemplate" in path else ""), pod


def _container(manifest: Manifest, node: yaml.MappingNode, owner: str) -> Place:
    name = text_at(node, "name") or "?"
    words = command_line(manifest.text, node)
    return Place(
        name=f"{owner}/{name}",
        graph="",
        service=None,
        container=name,
        role=None,
        engine=_engine(words, f"{text_at(node, 'image') or ''} {name}", None),
        variables=(_variables(node, "env"),),
        words=words,
        arguments=_arguments(node),
        outside=tuple(_outside(node)),
        devices=tuple(_devices(node)),
    )


def _graph(manifest: Manifest, resource: yaml.MappingNode, owner: str) -> Iterator[Place]:
    spec = get(resource, "spec")
    if not isinstance(spec, yaml.MappingNode):
        return
    graph_key = "envs" if (text_at(resource, "apiVersion") or "").endswith("v1alpha1") else "env"
    graph = Variables(key=graph_key, parent=spec, entries=_sequence(spec, graph_key), shared=owner)
    for service, node in _services(spec):
        main, lists = _main(node)
        words = command_line(manifest.text, main) if main is not None else ()
        role = (
            text_at(node, "subComponentType") or text_at(node, "componentType") or text_at(node, "type") or ""
        ).lower()
        image = (text_at(main, "image") or "") if main is not None else ""
        plain = role or service.lower()
        engine = None if plain in _NOT_ENGINES else _engine(words, image, role or None)
        outside = [("Secret", s)] if (s := text_at(node, "envFromSecret")) else []
        yield Place(
            name=f"{owner}/{service}",
            graph=owner,
            service=service,
            container="main" if main is not None else None,
            role=role or None,
            engine=engine,
            variables=(*lists, graph),
            words=words,
            arguments=_arguments(main) if main is not None else None,
            outside=(*outside, *(_outside(main) if main is not None else ())),
            devices=(*_devices(node), *(_devices(main) if main is not None else ())),
        )


def _services(spec: yaml.MappingNode) -> Iterator[tuple[str, yaml.MappingNode]]:
    """v1alpha1 has a mapping `services`, v1beta1 a list `components`."""
    services = get(spec, "services")
    if isinstance(services, yaml.MappingNode):
        for key, node in services.value:
            if isinstance(node, yaml.MappingNode):
                yield str(key.value), node
    for node in _items(get(spec, "components")):
        if isinstance(node, yaml.MappingNode):
            yield text_at(node, "name") or "?", node


def _main(service: yaml.MappingNode) -> tuple[yaml.MappingNode | None, list[Variables]]:
    """The main container, and the lists of variables: the container's own wins over the service's."""
    for container in _items(get(service, "podTemplate", "spec", "containers")):
        if isinstance(container, yaml.MappingNode) and text_at(container, "name") == "main":
            return container, [_variables(container, "env")]
    main = get(service, "extraPodSpec", "mainContainer")
    lists = [_variables(service, "envs")]
    if isinstance(main, yaml.MappingNode):
        return main, [_variables(main, "env"), *lists]
    return None, lists


def _variables(parent: yaml.MappingNode, key: str) -> Variables:
    return Variables(key=key, parent=parent, entries=_sequence(parent, key))


def _sequence(parent: yaml.MappingNode, key: str) -> yaml.SequenceNode | None:
    node = get(parent, key)
    return node if isinstance(node, yaml.SequenceNode) else None


def _arguments(node: yaml.MappingNode) -> yaml.SequenceNode | None:
    return _sequence(node, "args") or _sequence(node, "command")


def _outside(container: yaml.MappingNode) -> Iterator[tuple[str, str]]:
    for item in _items(get(container, "envFrom")):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if isinstance(item, yaml.MappingNode) and (name := text_at(item, key, "name")):
                yield kind, name


def _devices(node: yaml.MappingNode) -> Iterator[str]:
    """Network devices asked for: vpc.amazonaws.com/efa, rdma/..., wherever `resources` nests them."""
    stack = [get(node, "resources")]
    while stack:
        top = stack.pop()
        if isinstance(top, yaml.MappingNode):
            for key, value in top.value:
                name = str(key.value)
                if name == "vpc.amazonaws.com/efa" or name.startswith("rdma/"):
                    yield name
                stack.append(value)


def _engine(words: tuple[Word, ...], image: str, role: str | None) -> str | None:
    texts = [word.text for word in words]
    for text, following in zip(texts, [*texts[1:], ""], strict=False):
        base = text.rsplit("/", 1)[-1]
        if base in _ENGINE_WORDS:
            return _ENGINE_WORDS[base]
        if base in ENGINES and following == "serve":
            return base
        if base.startswith("dynamo."):
            return None
    if not texts and role is None:
        return None
    if any(text.startswith("--") for text in texts) or not texts:  # the image's own entry point runs the engine
        return next((engine for part, engine in _IMAGES if part in image.lower()), None)
    return None


def command_line(source: str, container: yaml.MappingNode) -> tuple[Word, ...]:
    """`command` and `args` as words; a script given to `sh -c` is taken apart."""
    nodes = [
        item for key in ("command", "args") for item in _items(get(container, key)) if isinstance(item, yaml.ScalarNode)
    ]
    words: list[Word] = []
    shell = script_next = False
    for node in nodes:
        value = str(node.value)
        if script_next:
            mapped = scalar(source, node)
            words += [Word(mapped=w, node=node, script=mapped, ends=end) for w, end in shell_words(mapped)]
            shell = script_next = False
            continue
        script_next = shell and bool(re.fullmatch(r"-[a-z]*c[a-z]*", value))
        shell = shell or bool(_SHELL.match(value))
        if value:
            words.append(Word(mapped=scalar(source, node), node=node))
    return tuple(words)


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def get(node: yaml.Node | None, *path: str) -> yaml.Node | None:
    """What stands there, by a merge (<<) too."""
    for key in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for name, value in node.value if name.value == key), None) or _merged(node, key)
    return node


def _merged(node: yaml.MappingNode, key: str) -> yaml.Node | None:
    """Of several mappings the first that has the key. Aliases that hold themselves were refused before."""
    merge = next((value for name, value in node.value if name.value == "<<"), None)
    for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge]:
        if isinstance(source, yaml.MappingNode) and (found := get(source, key)) is not None:
            return found
    return None


def text_at(node: yaml.Node | None, *path: str) -> str | None:
    found = get(node, *path)
    return str(found.value) if isinstance(found, yaml.ScalarNode) else None


def chosen(
    manifest: Manifest, engine: str | None, containers: tuple[str, ...] = (), services: tuple[str, ...] = ()
) -> list[tuple[Place, str]]:
    """The places to switch, each with its engine.

    engine      None: as each command line shows
    raises      CannotPatch where nothing fits, naming what there is
    """
    found: list[tuple[Place, str]] = []
    named = bool(containers or services)
    for place in manifest.places:
        if named and place.container not in containers and place.service not in services:
            continue
        own = place.engine or (engine if named else None)
        if own is not None and (engine is None or own == engine):
            found.append((place, own))
    missing = [c for c in containers if c not in {p.container for p in manifest.places}]
    missing += [s for s in services if s not in {p.service for p in manifest.places}]
    if missing or not found:
        seen = ", ".join(f"{p.name} ({p.engine or 'no engine seen'})" for p in manifest.places) or "no container at all"
        what = (
            f"no {', '.join(missing)}"
            if missing
            else f"no container that runs {engine or 'vLLM, TensorRT-LLM or SGLang'}"
        )
        raise CannotPatch(f"{what} here: {seen}; name it with --container or --service, and its --framework")
    return found
