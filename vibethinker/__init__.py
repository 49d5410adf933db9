"""Train small reasoning models by the VibeThinker recipe (Spectrum-to-Signal), as a library.

Nothing is imported here, so that `import vibethinker.config` stays free of torch and of every service.
"""

__version__ = "0.1.0"
