//! The socket every migration transport fits: channels, regions of guest memory, addresses, RAM hooks
