from kvgauge.samples.records import Exchange, Phases, Transfer
from kvgauge.samples.schema import KIND_KEY, KINDS, PHASES, SCHEMA_VERSION, VERSION_KEY, schema_of


def test_every_file_names_its_kind_and_version():
    for kind in KINDS:
        metadata = schema_of(kind).metadata
        assert metadata[VERSION_KEY] == str(SCHEMA_VERSION).encode()
        assert metadata[KIND_KEY] == kind.encode()


def test_every_field_of_a_record_has_its_column():
    exchange = set(Exchange.__struct_fields__) - {"arrivals_ns", "phases"}
    phases = {f"phase_{name}" for name in Phases.__struct_fields__}
    assert set(schema_of("exchanges").names) == exchange | phases | {"arrival_count"}
    assert set(schema_of("transfers").names) == {"run_id", *Transfer.__struct_fields__}
    assert set(PHASES) == set(Phases.__struct_fields__) - {"clock", "host"}


def test_every_column_is_documented():
    from pathlib import Path

    text = (Path(__file__).parents[2] / "docs" / "samples.md").read_text()
    assert f"Schema version {SCHEMA_VERSION}" in text
    for kind in KINDS:
        for name in schema_of(kind).names:
            assert f"`{name}`" in text, f"{kind}.{name} is not in docs/samples.md"
