"""Device profiles, one TOML file a machine, and their loader: installed as `dsmr_export.targets`."""

if __name__ != "dsmr_export.targets":
    raise ImportError("import dsmr_export.targets, not targets: this folder is installed under that name")
