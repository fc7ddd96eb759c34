//! Errors as a user sees them: exit code 2 for a wrong command line and 1 for everything else, one line on standard
//! error that names the file and the place, no panic, and no incomplete files.

mod broken;
mod checkpoints;
mod commands;
mod disk;
mod recipes;
mod samples;
