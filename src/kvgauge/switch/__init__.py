"""What each framework must be told to move KV over UCX or over LIBFABRIC, and manifests patched so.

`table` is the data, `profiles` what a switch sets and removes, `amounts` and `check` what settings come to, `places`
where a manifest holds them, `patch` the switch of a file. All of it is pure: text in, text out.
"""
