"""Evaluation: experiments that measure the effect of guidance (`w2s eval`)."""
