"""One tokenizer and many threads: truncation and padding are states of it."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from attribution.diffusion.pipeline import GenerateSettings


def test_tokens_are_counted_while_others_generate_and_encode(model32):
    """The same picture, the same text, no error, whatever else is asked of the tokenizer meanwhile."""
    prompts = ["a red bird", "a red key beside a green apple and two birds above a red bus on a blue ground"]
    settings = GenerateSettings(steps=1)

    def picture():
        return model32.generate(prompts[0], 3, settings).tobytes()

    def text():
        return model32.encode_text(prompts).numpy().tobytes()

    expected = [picture(), text(), [model32.tokens.count(prompt) for prompt in prompts]]
    enough = Event()

    def count_on():
        wrong = 0
        while not enough.is_set():
            wrong += [model32.tokens.count(prompt) for prompt in prompts] != expected[2]
        return wrong

    with ThreadPoolExecutor(5) as pool:
        counting = [pool.submit(count_on) for _ in range(3)]
        try:
            encoding = pool.submit(lambda: {text() for _ in range(200)})  # another thread than the device's
            pictures = {picture() for _ in range(40)}
            texts = encoding.result()
        finally:
            enough.set()
        assert [future.result() for future in counting] == [0, 0, 0]
    assert pictures == {expected[0]}
    assert texts == {expected[1]}
