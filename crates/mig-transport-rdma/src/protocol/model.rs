//! Source and destination against each other in memory: any delay the rules allow, and the memory must come out right.
