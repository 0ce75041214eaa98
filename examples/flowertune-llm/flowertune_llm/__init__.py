"""Federated LoRA fine-tuning of large language models."""
