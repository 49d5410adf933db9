"""Nothing calls home, whatever a library or a server does by default: the environment of all that is started here."""

OFF = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Its newer UI asks amplitude.com for its settings from the browser, whatever is set, and links in messages open the
    # older one anyway.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "WANDB_MODE": "disabled",
}
