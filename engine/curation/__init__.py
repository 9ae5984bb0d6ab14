"""Models that make a dataset's texts: trained or run by the engine, used by the stages in `data.curate`."""
