"""What every command shares: settings, messages, signals, help, and the reports that are commands of their own."""
