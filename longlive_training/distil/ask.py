"""Language models that are asked for follow-ups: at an endpoint of OpenAI's kind, or in a local folder."""

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import torch

from longlive_core.cli.stderr import printable

from .extras import extra
from .models import frozen_dtype

COMPLETIONS = "/chat/completions"
TRIES = 6
LONGEST_WAIT = 60.0  # seconds between two of them
TIMEOUT = 180.0  # seconds for one answer; a model on a CPU is slow
TEMPORARY = (408, 425, 429)  # and all from 500 on
QUOTED = 200  # characters of what a server says
NEW_TOKENS = 400
Messages = list[dict[str, str]]
Ask = Callable[[Messages, int], str]  # messages, how often they were asked before -> answer


class BadAnswer(ValueError):
    """An answer that cannot be used; another one may be."""


class _Busy(Exception):
    """The endpoint may answer later, after so many seconds if it says so."""

    def __init__(self, reason: str, seconds: float | None = None):
        super().__init__(reason)
        self.seconds = seconds


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another server."""

    def redirect_request(self, *args: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """Callable: asks `model` at `url` (https://.../v1), with `key` as a bearer token if there is one.

    Waits and asks again where it is busy or cannot be reached. Raises ValueError where it refuses,
    ConnectionError where it stays away, BadAnswer for an answer that was cut off.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self):
        if not _is_address(self.url):
            raise ValueError(f"the endpoint {self.url} is no address; write it as http://localhost:11434/v1")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("the key has a line end or a character that no key has; export it again")

    def __call__(self, messages: Messages, times: int) -> str:
        for number in range(TRIES):
            try:
                return _content(self._post({"model": self.model, "messages": messages}))
            except _Busy as busy:
                reason = str(busy)
                if number < TRIES - 1:
                    self.sleep(min(2.0**number, LONGEST_WAIT) if busy.seconds is None else busy.seconds)
        raise ConnectionError(f"{self.url} did not answer in {TRIES} tries: {reason}")

    def _post(self, body: dict[str, Any]) -> Any:
        url = self.url.rstrip("/")
        address = url if url.endswith(COMPLETIONS) else url + COMPLETIONS
        headers = {"Content-Type": "application/json", "User-Agent": "longlive"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(address, json.dumps(body).encode(), headers)
        try:
            with build_opener(_NoRedirect).open(request, timeout=TIMEOUT) as response:
                return json.loads(response.read())
        except HTTPError as error:
            raise self._refused(error) from error
        except (URLError, OSError, http.client.HTTPException, ValueError) as error:
            raise _Busy(str(error)) from error

    def _refused(self, error: HTTPError) -> Exception:
        with error:
            said = printable(error.read(QUOTED).decode("utf-8", "replace"))
        reason = f"{error.code} {error.reason}{': ' if said else ''}{said}"
        if error.code in TEMPORARY or error.code >= http.client.INTERNAL_SERVER_ERROR:
            after = error.headers.get("Retry-After", "")
            return _Busy(reason, min(float(after), 10 * LONGEST_WAIT) if after.isdecimal() else None)
        return ValueError(
            f"{self.url} refuses: {reason}; check the address, --model, and the key (--key-from)"
        )


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address
        return False
    return is_web and url.isascii() and not any(one.isspace() for one in url)


def _content(response: Any) -> str:
    """The text of a chat completion."""
    try:
        choice = response["choices"][0]
        content = choice["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise _Busy(f"no chat completion came, but {printable(str(response)[:QUOTED])}") from error
    if choice.get("finish_reason") == "length" or not isinstance(content, str):
        raise BadAnswer("it was cut off" if isinstance(content, str) else "it has no text")
    return content


def local_model(path: Path, device: torch.device) -> Ask:
    """A causal language model in a folder of transformers; ValueError where it cannot be loaded."""
    transformers = extra("transformers", "--local", "transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no language model that transformers can load: {error}") from error
    model = model.to(device, frozen_dtype(device)).eval()

    @torch.no_grad()
    def ask(messages: Messages, times: int) -> str:
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = "\n\n".join(message["content"] for message in messages) + "\n\n"
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
        ids = inputs["input_ids"].to(device)
        torch.manual_seed(times)
        sampling = {"do_sample": True, "temperature": 0.7, "max_new_tokens": NEW_TOKENS}
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        mask = torch.ones_like(ids)
        made = model.generate(ids, attention_mask=mask, pad_token_id=padding, **sampling)[0, ids.shape[1] :]
        if len(made) == NEW_TOKENS:
            raise BadAnswer("it was cut off")
        return tokenizer.decode(made, skip_special_tokens=True)

    return ask
