"""Where Learning Rate Dropout helps: the study that `plan.md` describes."""
