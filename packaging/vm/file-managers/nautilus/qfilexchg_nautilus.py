"""Entries of Nautilus' context menu; nautilus-python loads this."""

import sys

sys.path.append("/usr/lib/qubes/python")

from gi.repository import GObject, Nautilus

from qfilexchg.guest.desktop.menus import entries


class QfilexchgMenu(GObject.GObject, Nautilus.MenuProvider):
    def get_file_items(self, *arguments):
        return entries(Nautilus.MenuItem, arguments[-1])
