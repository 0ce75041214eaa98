"""Prompt templates in Jinja, by the names that `model.prompt-template` takes.

A run has one template, for training and for questions; it is saved with the adapter.
"""

TEMPLATES = {
    "vicuna": (
        "{{ bos_token or '' }}A chat between a curious user and an artificial intelligence "
        "assistant. The assistant gives helpful, detailed, and polite answers to the user's "
        "questions."
        "{% for m in messages %}{% if m.role == 'user' %} USER: {{ m.content }} ASSISTANT:"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "alpaca": (
        "{{ bos_token or '' }}Below is an instruction that describes a task. Write a response "
        "that appropriately completes the request."
        "{% for m in messages %}{% if m.role == 'user' %}\n\n### Instruction:\n{{ m.content }}"
        "\n\n### Response:\n{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
