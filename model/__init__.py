"""The network, its data and its training (needs torch): installed as `dsmr_export.model`."""

if __name__ != "dsmr_export.model":
    raise ImportError("import dsmr_export.model, not model: this folder is installed under that name")
