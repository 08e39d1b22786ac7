"""Entries of Caja's context menu; python-caja loads this."""

import sys

sys.path.append("/usr/lib/qubes/python")

from gi.repository import Caja, GObject

from qfilexchg.guest.desktop.menus import entries


class QfilexchgMenu(GObject.GObject, Caja.MenuProvider):
    def get_file_items(self, *arguments):
        return entries(Caja.MenuItem, arguments[-1])
