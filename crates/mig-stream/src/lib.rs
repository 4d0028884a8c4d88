//! The async QEMUFile: buffered, counted, paced and stoppable byte streams over any channel
