"""Steps of a running query, one per file. They have the shape of `core.flow.Operator`, over typed rows instead of raw
Arrow batches: `process` takes rows in time order, `advance` takes a watermark, state goes out and in as Arrow tables.
"""
