// The form that asks for a key, as soon as the server does.

import { byId } from "./dom.js";
import { askModel, canBeSent, onKeyMissing, useKey } from "./requests.js";

/** Watches for answers that miss a key; `accepted` is called when the server took one. */
export function listenForKey(accepted) {
  const [form, field, wrong] = [byId("key-form"), byId("key"), byId("key-wrong")];
  const refuse = () => {
    wrong.hidden = false;
    field.select();
  };
  onKeyMissing((wasSent) => {
    form.hidden = false;
    wrong.hidden = !wasSent;
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!canBeSent(key)) return refuse();
    useKey(key);
    try {
      await askModel();
    } catch (error) {
      if (error.status === 401) {
        useKey(null);
        return refuse();
      }
    }
    field.value = "";
    form.hidden = true;
    accepted();
  });
}
