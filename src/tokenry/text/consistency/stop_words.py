"""English function words that are no targets of the probe."""

from __future__ import annotations

_WORDS = """
a about above across after again against all almost along already also although always am among an and another any anyone
anything are aren't around as at away back be because been before behind being below between both but by came can can't
cannot come could couldn't did didn't do does doesn't doing don't done down during each either else enough even ever every
everyone everything few first for from get gets getting go goes going got had hadn't has hasn't have haven't having he he'd
he'll he's hence her here here's hers herself him himself his how however i i'd i'll i'm i've if in indeed into is isn't it
it's its itself just last later least less let let's like made make makes many may maybe me might mine more most mr mrs ms
much must my myself near neither never no nobody none nor not nothing now of off often on once one only onto or other others
otherwise our ours ourselves out over own per perhaps put quite rather really said same say says several shall she she'd
she'll she's should shouldn't since so some somebody someone something still such take taken than that that's the their
theirs them themselves then there there's therefore these they they'd they'll they're they've this those though through thus
to together too toward towards two under until up upon us use used using very was wasn't we we'd we'll we're we've well went
were weren't what what's whatever when where whether which while who who's whoever whole whom whose why will with within
without won't would wouldn't yet you you'd you'll you're you've your yours yourself yourselves
"""
STOP_WORDS = frozenset(_WORDS.split())
