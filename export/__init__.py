"""Export: a checkpoint to graphs, a bundle and engines, compared with the modules that it came from."""

from latentrt.environment.privacy import EXPORT, decline_reports

decline_reports(EXPORT)  # before anything here imports what reads them
