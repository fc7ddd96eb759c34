//! What goes wrong, as a user meets it: exit code 2 for a wrong command line and 1 for everything else, one line on
//! standard error that names the file and the place, no panic, and nothing half-written.

mod broken;
mod checkpoints;
mod commands;
mod disk;
mod recipes;
mod samples;
