"""Pipelines of the diffusers library as teachers: a folder or a name of the Hub, prompts, latents and pixels."""
