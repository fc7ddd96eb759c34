//! What is damaged, and the command that reads it.

use std::fs;
use std::path::{Path, PathBuf};

/// A format: a folder with whole files, which of them is damaged, and the command that reads it there.
#[derive(Debug, Clone)]
pub struct Target {
    /// The format.
    pub name: &'static str,
    /// Files of the fixtures, by their place there and in the working folder; a folder is copied whole.
    files: Vec<(PathBuf, &'static str)>,
    /// Files that are written as they are.
    texts: Vec<(&'static str, String)>,
    /// The one that is damaged.
    pub damaged: &'static str,
    /// The command that writes the damaged file from the others, once; none where it is among them.
    pub made_by: &'static [&'static str],
    /// The command's arguments, relative to the working folder.
    pub line: &'static [&'static str],
}

impl Target {
    /// Lays the whole files out in an empty folder.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn lay(&self, folder: &Path) -> std::io::Result<()> {
        for (from, to) in &self.files {
            copy(from, &folder.join(to))?;
        }
        for (name, text) in &self.texts {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(path, text)?;
        }
        Ok(())
    }
}

/// Copies a file, or a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        fs::create_dir_all(to.parent().unwrap_or(Path::new(".")))?;
        return fs::copy(from, to).map(|_| ());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

const RECORD: &str = r#"{"id":"1","image":"a.png","conversations":[{"from":"human","value":"<image>\nwhat?"},{"from":"gpt","value":"a red circle"}]}"#;
const RECIPE: &str = "stage = \"pretrain\"\ndevice = \"cpu\"\noutput = \"run\"\n[model]\ncheckpoint = \"model\"\n[data]\n\
    path = \"data.json\"\n[optimizer]\nlr = 1e-3\n[train]\nbatch_size = 2\nsteps = 2\n[loader]\nworkers = 1\n";
const TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
    {% for c in message['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] | trim }}{% endif %}\
    {% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}ASSISTANT: {% endif %}";
const CHECK: &[&str] = &["data", "check", "data.json", "--checkpoint", "model", "--conversation", "vicuna_v1"];

/// Every format, over the project's `tests/fixtures`.
pub fn targets(fixtures: &Path) -> Vec<Target> {
    let model = || (fixtures.join("plain"), "model");
    let image = || (fixtures.join("images/a.png"), "a.png");
    let data = || ("data.json", format!("[{RECORD},{RECORD}]"));
    let inside = |name, damaged, line| Target {
        name,
        files: vec![model(), image()],
        texts: vec![data(), ("model/chat_template.jinja", TEMPLATE.into()), ("recipe.toml", RECIPE.into())],
        damaged,
        made_by: &[],
        line,
    };
    let questions = "{\"question_id\":0,\"image\":\"a.png\",\"text\":\"what?\",\"answer\":\"a\",\"category\":\"c\"}\n";
    let prediction = |id: usize| {
        format!(
            "{{\"question_id\":{id},\"image\":\"a.png\",\"text\":\"what?\",\"expected\":\"a\",\"answer\":\"b\",\"category\":\"c\",\"correct\":false}}
"
        )
    };
    let predictions: String = (0..3).map(prediction).collect();
    let lines = |name, file: &'static str, text: &str, line| Target {
        name,
        files: vec![model(), image()],
        texts: vec![(file, text.repeat(3))],
        damaged: file,
        made_by: &[],
        line,
    };
    let exported = |name, damaged, made_by, line| Target { damaged, made_by, ..inside(name, "a.png", line) };
    vec![
        exported(
            "parquet",
            "set/00000.parquet",
            &["data", "export", "data.json", "--format", "parquet", "--out", "set"],
            &["data", "check", "set/00000.parquet"],
        ),
        exported(
            "webdataset",
            "set/00000.tar",
            &["data", "export", "data.json", "--format", "webdataset", "--out", "set"],
            &["data", "check", "set/00000.tar"],
        ),
        exported("run.json", "run/run.json", &["train", "recipe.toml"], &["train", "--resume", "run"]),
        inside("image", "a.png", &["preprocess", "model", "a.png", "out.safetensors"]),
        inside("config.json", "model/config.json", &["convert", "model", "out"]),
        inside("safetensors", "model/model.safetensors", &["convert", "model", "out"]),
        inside("tokenizer.json", "model/tokenizer.json", CHECK),
        inside("tokenizer_config.json", "model/tokenizer_config.json", CHECK),
        inside("processor_config.json", "model/processor_config.json", CHECK),
        inside("generation_config.json", "model/generation_config.json", &["convert", "model", "out"]),
        inside(
            "chat template",
            "model/chat_template.jinja",
            &["data", "check", "data.json", "--checkpoint", "model", "--conversation", "template"],
        ),
        inside("json", "data.json", CHECK),
        lines("jsonl", "data.jsonl", &format!("{RECORD}\n"), &["data", "check", "data.jsonl"]),
        inside("recipe", "recipe.toml", &["train", "recipe.toml", "--plan"]),
        lines("questions", "q.jsonl", questions, &["eval", "model", "q.jsonl", "--max-new-tokens", "1"]),
        Target {
            name: "predictions",
            files: vec![image()],
            texts: vec![("p.predictions.jsonl", predictions)],
            damaged: "p.predictions.jsonl",
            made_by: &[],
            line: &["report", "p.predictions.jsonl", "--out", "page.html"],
        },
        lines(
            "samples of losses",
            "s.jsonl",
            "{\"image\":\"a.png\",\"prompt\":\"<image> x\",\"answer\":\"a\"}\n",
            &["losses", "model", "s.jsonl"],
        ),
    ]
}
