//! Runs `basic chat`.

use std::io::{BufRead, IsTerminal, StdinLock, stdin};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};
use basic_models::generate::{Answer, Conversation, GenerateError, GenerationConfig};
use basic_models::processor::{LlavaStyle, Prompt, Style};
use basic_models::{Checkpoint, ImageTokens};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::generate::{Printer, blamed, features, pixels, settings, tell_of_a_cut};
use super::model::{open, open_device};
use crate::args::{Chat, MAX_NEW_TOKENS};
use crate::output::{closed, tell};

const HELP: &str = "/image PATH  talk about another image, from the start\n\
                    /reset       forget the conversation\n\
                    /help        this list\n\
                    /quit        leave (or Ctrl-D); Ctrl-C ends an answer";

/// Whether an answer is being generated.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Whether Ctrl-C has cancelled the answer.
static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Holds the conversation until the input ends. Answers go to standard output, everything else to standard error.
pub fn chat(args: Chat) -> Result<()> {
    let device = open_device(&args.device, args.dtype)?;
    let mut checkpoint = open(&args.checkpoint, &device)?;
    checkpoint.images = checkpoint.images.with_max_pixels(args.max_pixels);
    let style = style(&checkpoint, args.style);
    let most = args.max_new_tokens.map_or(MAX_NEW_TOKENS, |most| most as usize);
    let (config, mut stop) = settings(&checkpoint, &args.tokens, most)?;
    stop.extend(style.stops().iter().map(|stop| stop.to_string()));
    let read = |image: &Path| -> Result<ImageTokens> {
        let tiles = checkpoint.tiles(image)?;
        // Only the image: its tiles, from which the conversation's prompts follow.
        let whole = 0..tiles.tokens();
        let prompt = Prompt { ids: vec![0; whole.len()], image_positions: vec![whole], tiles: vec![tiles] };
        Ok(ImageTokens { pixels: pixels(&checkpoint, &[PathBuf::from(image)])?, ..prompt.into() })
    };
    let first = args.image.as_deref().map(read).transpose()?;
    let model = checkpoint.load(args.dtype.into(), &device)?;
    let start = |image: Option<ImageTokens>| {
        let features = image.as_ref().and_then(|image| features(&model, image, checkpoint.image_shape()));
        let tiles = image.map(|image| image.tiles).unwrap_or_default();
        Conversation::new(&checkpoint, &model, style.clone(), args.system.as_deref(), tiles, features)
    };
    let mut conversation = start(first);
    ctrlc::set_handler(interrupted).context("Ctrl-C")?;
    let mut input = Input::new()?;
    let terminal = matches!(input, Input::Terminal(_));
    if terminal {
        let written = match (args.style, &checkpoint.template) {
            (Some(style), _) => style.name(),
            (None, Some(_)) => "its chat template",
            (None, None) => "vicuna_v1 (it has no chat template)",
        };
        tell!("{}, by {written}; /help lists the commands", args.checkpoint.display());
    }
    let mut turn = 0;
    while let Some(line) = input.next()? {
        let done = match line.trim() {
            "" => Ok(()),
            "/quit" => break,
            "/help" => {
                HELP.lines().for_each(|line| tell!("{line}"));
                Ok(())
            }
            "/reset" => {
                conversation.reset();
                Ok(())
            }
            line => match (line.strip_prefix("/image"), line.starts_with('/')) {
                (Some(path), _) if path.starts_with(char::is_whitespace) => {
                    read(Path::new(path.trim())).map(|image| conversation = start(Some(image)))
                }
                (_, true) => Err(anyhow!("{line}: no such command; /help lists them")),
                (_, false) => {
                    turn += 1;
                    let answered = answer(&mut conversation, line, &seeded(&config, turn), &stop);
                    answered.map_err(|error| blamed(error, &checkpoint)).map(|answer| {
                        if args.max_new_tokens.is_none() {
                            tell_of_a_cut(&answer);
                        }
                    })
                }
            },
        };
        match done {
            Err(error) if terminal => tell!("error: {}", crate::message(&error)),
            done => done?,
        }
        if closed() {
            break;
        }
    }
    Ok(())
}

/// How turns are written: in the requested style, or else by the checkpoint's chat template, or else in vicuna_v1.
fn style(checkpoint: &Checkpoint, asked: Option<&'static LlavaStyle>) -> Style {
    match (asked, &checkpoint.template) {
        (Some(style), _) => style.into(),
        (None, Some(template)) => template.clone().into(),
        (None, None) => Style::vicuna_v1(),
    }
}

/// The generation settings of a turn. Each turn gets a seed of its own.
fn seeded(config: &GenerationConfig, turn: u64) -> GenerationConfig {
    let mut config = config.clone();
    if let Some(sampling) = &mut config.sampling {
        sampling.seed = sampling.seed.wrapping_add(turn - 1);
    }
    config
}

fn answer(
    conversation: &mut Conversation<'_>,
    question: &str,
    config: &GenerationConfig,
    stop: &[String],
) -> Result<Answer, GenerateError> {
    let printer = Printer::new(true);
    let mut begun = false;
    CANCELLED.store(false, Ordering::SeqCst);
    ANSWERING.store(true, Ordering::SeqCst);
    let answered = conversation.ask(question, config, stop, &mut |piece| {
        let text = if begun { piece.text } else { piece.text.trim_start() };
        begun |= !text.is_empty();
        printer.print(text)?;
        if CANCELLED.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    ANSWERING.store(false, Ordering::SeqCst);
    let answer = answered?;
    let _ = printer.print("\n");
    if answer.text.trim().is_empty() {
        tell!("note: the answer is blank, the question is forgotten");
    }
    Ok(answer)
}

/// Handles Ctrl-C: cancels the answer, or ends the program if no answer is being generated or it was cancelled already.
fn interrupted() {
    let ends_an_answer = ANSWERING.load(Ordering::SeqCst) && !CANCELLED.swap(true, Ordering::SeqCst);
    if !ends_an_answer {
        std::process::exit(130);
    }
}

/// The source of the questions.
enum Input {
    /// A terminal with line editing and a history.
    Terminal(Box<DefaultEditor>),
    /// The lines of standard input.
    Lines(std::io::Lines<StdinLock<'static>>),
}

impl Input {
    fn new() -> Result<Self> {
        Ok(match stdin().is_terminal() {
            true => Self::Terminal(Box::new(DefaultEditor::new().context("the terminal")?)),
            false => Self::Lines(stdin().lock().lines()),
        })
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Self::Lines(lines) => lines.next().transpose().context("standard input"),
            Self::Terminal(editor) => loop {
                match editor.readline("> ") {
                    Ok(line) => {
                        editor.add_history_entry(&line).context("the history")?;
                        return Ok(Some(line));
                    }
                    Err(ReadlineError::Interrupted) => {} // Ctrl-C discards the line
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => return Err(error).context("the terminal"),
                }
            },
        }
    }
}
