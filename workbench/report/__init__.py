"""The report of a run: one self-contained page made from the run folder alone."""

from workbench.report.build import write_report as write_report
from workbench.report.figures import COLOURS as COLOURS
from workbench.report.figures import new_figure as new_figure
from workbench.report.latents import LatentContext as LatentContext
from workbench.report.latents import LatentPage as LatentPage
from workbench.report.latents import latents_section as latents_section
from workbench.report.sections import KINDS as KINDS
