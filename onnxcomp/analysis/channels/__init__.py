"""Which channels belong together: groups of positions along axes, over the whole graph."""

from onnxcomp.analysis.channels.groups import Barrier, ChannelMap, Channels, Group, Member

__all__ = ["Barrier", "ChannelMap", "Channels", "Group", "Member"]
