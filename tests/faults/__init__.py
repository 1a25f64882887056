"""What tests and benchmarks break on purpose: storage (`proxy`) and processes (`processes`)."""
