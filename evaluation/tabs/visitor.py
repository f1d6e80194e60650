"""Say how long a visitor's work is kept, where visitors are kept apart."""

from lora_runtime.settings import Settings


def draw_keeping(settings: Settings) -> str:
    """Return the line that says whose a visitor's work is and how long it is kept; none on one's own machine."""
    if settings.visitors == "together":
        return ""
    kept = f"kept for {_hours(settings.keep_hours)}, then deleted" if settings.keep_hours else "kept"
    return f'<p class="keeping">What you make here is yours alone: no other visitor sees it. It is {kept}.</p>'


def _hours(hours: float) -> str:
    days = hours / 24
    if days >= 2 and days == int(days):
        return f"{days:g} days"
    return "one hour" if hours == 1 else f"{hours:g} hours"
