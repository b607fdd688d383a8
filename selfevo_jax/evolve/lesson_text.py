"""Records that are complete for training, as the tokens that a trainer takes."""

from selfevo_jax.learn.labels import labelled
from selfevo_jax.records import DataRow, Example, Pair
from selfevo_jax.text.render import TokenExample, render_conversation, render_example
from selfevo_jax.text.tokenizer import Tokenizer

Trainable = Pair | Example | DataRow


def rendered(tokenizer: Tokenizer, record: Trainable, max_length: int) -> TokenExample:
    """The prompt and completions of a record. Raises UserError where they are over `max_length`."""
    match record:
        case Pair():
            texts = (record.chosen, record.rejected)
            return render_example(tokenizer, record.id, record.prompt, texts, max_length)
        case Example():
            texts = (record.completion,)
            return render_example(tokenizer, record.id, record.prompt, texts, max_length)
        case DataRow():
            return _rendered_row(tokenizer, record, max_length)


def _rendered_row(tokenizer: Tokenizer, row: DataRow, max_length: int) -> TokenExample:
    if not row.completions:
        return render_conversation(tokenizer, row.source_id, row.messages, max_length)
    made = render_example(tokenizer, row.source_id, row.messages, row.completions, max_length)
    return made if row.label is None else labelled(made, row.label)
